"""Compiled programs on disk: what one process has compiled, the next one reads."""

import hashlib
import os
from pathlib import Path
import platform

import jax

from smskd_jax.errors import UserError

DISABLED = "off"


def enable(folder: str | None = None) -> Path | None:
  """From now on, keeps what takes a second or more to compile, for this process and for later ones.

  Args:
    folder: where to; 'off' keeps nothing; None is a folder of the user's cache, unless JAX was told of one already (by
      JAX_COMPILATION_CACHE_DIR, say), which then stays.

  Returns:
    The folder; None if nothing is kept: where a default cannot be written to, programs are compiled each time.

  Raises:
    UserError: the given folder cannot be written to.
  """
  if folder == DISABLED:
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  told = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009  # mypy knows no settings by name
  if folder is None and told:
    return Path(told)
  path = Path(folder) if folder else _default()
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


def _default() -> Path:
  """By processor: a program for one may use instructions that another lacks, and homes are shared."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "smskd_jax" / "programs" / f"{platform.machine()}-{_processor()}"


def _processor() -> str:
  """A fingerprint of what the processor can do."""
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
  can = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0] if lines else "")
  return hashlib.sha256(can.encode()).hexdigest()[:8]
