"""oneDNN's convolutions for CPUs, called by XLA: found, compiled, cached and registered.

The extra `cpu` installs oneDNN's library and headers: release 3.2, in the packages `onednn-cpu-gomp` and
`onednn-devel-cpu-gomp` 2023.2, which need only the OpenMP library of GCC. Later releases on PyPI (`onednn` from
2024 on) need Intel's DPC++ and OpenCL runtimes, several hundred megabytes, and are no faster in these functions.

`onednn.cc` is compiled by the machine's C++ compiler when a program first uses it. Without the extra, nothing is
compiled or printed. With the extra, one line gives the reason if oneDNN cannot be used. `SMSKD_ONEDNN=off` in the
environment switches it off.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
from pathlib import Path
import platform
import shlex
import shutil
import subprocess
import tempfile

from smskd_jax.runtime import console

SWITCH = "SMSKD_ONEDNN"
PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
HANDLERS = ("forward", "input_gradient", "kernel_gradient")
_SOURCE = Path(__file__).with_name("onednn.cc")
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-fopenmp")


class UnavailableError(Exception):
  """The reason why oneDNN cannot be used."""


def version() -> str | None:
  """Version of oneDNN's package if convolutions use it, else None."""
  return importlib.metadata.version(PACKAGES[0]) if _library()[0] else None


@functools.cache
def targets() -> dict[str, str]:
  """Registers the handlers with XLA: names of its targets by handler; {} without oneDNN.

  The names have the digest of the library, so that no stored program calls another one.
  """
  library, reason = _library()
  if library is None:
    if reason:
      console.log(f"convolutions on the CPU are XLA's instead of oneDNN's: {reason}")
    return {}
  import jax  # late: `version` is for code that does not compute, too

  handlers = ctypes.CDLL(str(library))
  names = {name: f"smskd_convolution_{name}_{library.stem.rpartition('-')[2]}" for name in HANDLERS}
  for name, target in names.items():
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(handlers, name)), platform="cpu")
  return names


@functools.cache
def _library() -> tuple[Path | None, str]:
  """(compiled library that loads, ""), or (None, reason); the reason is "" without the extra."""
  try:
    files = [_files(package) for package in PACKAGES]
  except importlib.metadata.PackageNotFoundError:
    return None, ""
  try:
    path = _compile(*files)
    ctypes.CDLL(str(path))
  except (UnavailableError, OSError) as error:
    return None, str(error).partition("\n")[0]
  return path, ""


def _files(package: str) -> list[Path]:
  """Files of an installed package."""
  return [Path(str(path.locate())).resolve() for path in importlib.metadata.distribution(package).files or ()]


def _compile(library_files: list[Path], header_files: list[Path]) -> Path:
  """Path of the compiled library, in the cache or new.

  Raises:
    UnavailableError: oneDNN is switched off, or a requirement is missing, or compilation fails.
    OSError: the cache folder cannot be written to.
  """
  if os.environ.get(SWITCH, "").lower() in ("off", "0"):
    raise UnavailableError(f"{SWITCH} is off")
  if platform.machine() != "x86_64":
    raise UnavailableError(f"its package is for x86_64, this processor is {platform.machine()}")
  onednn = _find("libdnnl.so.3", library_files)
  headers = _find("dnnl.hpp", [path for path in header_files if path.parent.name == "dnnl"]).parents[2]
  xla = importlib.util.find_spec("jaxlib")
  assert xla is not None and xla.submodule_search_locations
  xla_headers = Path(xla.submodule_search_locations[0]) / "include"
  arguments = [
    *_FLAGS,
    f"-isystem{headers}",
    f"-isystem{xla_headers}",
    str(onednn),
    f"-Wl,-rpath,{onednn.parent}",
  ]
  path = _cache_folder() / f"onednn-{_digest(arguments)}.so"
  if not path.is_file():
    _run_compiler(arguments, path)
  return path


def _find(name: str, files: list[Path]) -> Path:
  found = next((path for path in files if path.name == name and path.is_file()), None)
  if found is None:
    raise UnavailableError(f"the packages {' and '.join(PACKAGES)} have no {name}; install them anew")
  return found


def _cache_folder() -> Path:
  """Folder of compiled libraries, beside that of compiled programs."""
  cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(cache) / "smskd_jax" / "libraries"


def _digest(arguments: list[str]) -> str:
  """Digest of everything that the compiled library depends on.

  The code is for any x86-64 processor: oneDNN itself generates code for the processor at run time. Machines that share
  a cache folder may differ in their C library.
  """
  versions = [importlib.metadata.version(package) for package in ("jaxlib", *PACKAGES)]
  parts = [_SOURCE.read_text(), *arguments, *versions, platform.machine(), *platform.libc_ver()]
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run_compiler(arguments: list[str], path: Path) -> None:
  """Compiles to a temporary file and renames it: several processes may do so at once."""
  compiler = shlex.split(os.environ.get("CXX", "")) or [
    next(filter(shutil.which, ("c++", "g++", "clang++")), "")
  ]
  if not shutil.which(compiler[0]):
    raise UnavailableError("there is no C++ compiler; install g++, or name another in CXX")
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    output = Path(folder) / path.name
    command = [*compiler, str(_SOURCE), *arguments, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
      raise UnavailableError(f"{compiler[0]} fails: {lines[0].strip()}")
    output.replace(path)
