"""Persistent cache of compiled programs, by JAX's compilation cache."""

import hashlib
import os
from pathlib import Path
import platform

import jax

from smskd_jax.errors import UserError

DISABLED = "off"


def enable(folder: str | None = None) -> Path | None:
  """Enables the cache for programs that take a second or more to compile.

  Args:
    folder: of the cache; 'off': no cache; None: JAX's own setting (as by JAX_COMPILATION_CACHE_DIR), else a folder in
      the user's cache.

  Returns:
    The folder; None without a cache, which includes a default folder that cannot be written to.

  Raises:
    UserError: `folder` cannot be written to.
  """
  if folder == DISABLED:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  configured = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009  # mypy does not know settings by name
  if folder is None and configured:
    return Path(configured)
  path = Path(folder) if folder else _default_folder()
  try:
    path.mkdir(parents=True, exist_ok=True)
    writable = os.access(path, os.W_OK | os.X_OK)
  except OSError:
    writable = False
  if not writable:
    if folder:
      raise UserError(f"--compilation_cache: {folder} cannot be written to; choose another folder, or 'off'")
    return None
  jax.config.update("jax_compilation_cache_dir", str(path))
  return path


def _default_folder() -> Path:
  """One folder per kind of processor."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "smskd_jax" / "programs" / f"{platform.machine()}-{_cpu_digest()}"


def _cpu_digest() -> str:
  """Digest of the processor's instruction sets."""
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
  flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
  return hashlib.sha256(flags.encode()).hexdigest()[:8]
