"""Detects damaged files, by checksums in JSON files and digests of other files."""

from collections.abc import Iterable, Mapping
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from smskd_jax.errors import UserError

CHECKSUM = "sha256"  # key of the checksum of a JSON file's other content

# By path: ((modification time, size, inode), SHA-256), so that a process reads no unchanged file twice.
_DIGESTS: dict[Path, tuple[tuple[int, int, int], str]] = {}


class DamagedFileError(UserError):
  """A file differs from what was written, or is missing."""

  def __init__(self, path: Path, problem: str, fix: str = ""):
    """Creates the error of a file, with its problem and, if known, the fix."""
    super().__init__(f"{path} {problem}" + (f"; {fix}" if fix else ""))
    self.path, self.problem = path, problem


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """The content of a JSON file with its checksum."""
  plain = json.loads(json.dumps(value))
  return plain | {CHECKSUM: _checksum(plain)}


def _checksum(plain: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path, fix: str = "") -> dict[str, Any]:
  """Reads a JSON file; returns the content without the checksum.

  A file without a checksum is not checked.

  Args:
    path: of the file.
    fix: what to do about a damaged file, for the message.

  Raises:
    DamagedFileError: the file is damaged or missing.
  """
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise DamagedFileError(path, "is missing", fix) from None
  except (OSError, ValueError, RecursionError) as error:
    raise DamagedFileError(path, f"is damaged ({_describe_error(error)})", fix) from None
  if not isinstance(value, dict):
    raise DamagedFileError(path, f"is damaged (it holds a {type(value).__name__}, no object)", fix)
  checksum = value.pop(CHECKSUM, None)
  if checksum is not None and checksum != _checksum(value):
    raise DamagedFileError(path, "is damaged (its checksum differs)", fix)
  return value


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """Reads the arrays of a .npz file by name; the format has checksums.

  Raises:
    DamagedFileError: the file is damaged or missing.
  """
  try:
    with open(path, "rb") as file, np.load(file) as arrays:  # np.load alone leaves a damaged file open
      return dict(arrays)
  except FileNotFoundError:
    raise DamagedFileError(path, "is missing") from None
  except Exception as error:  # zipfile, zlib and NumPy raise errors of many types
    raise DamagedFileError(path, f"is damaged ({_describe_error(error)})") from None


def file_digests(folder: Path, exclude: Iterable[str]) -> dict[str, dict[str, Any]]:
  """SHA-256 and size in bytes of every file in a folder, by relative path.

  Args:
    folder: of the files.
    exclude: patterns of names of files and folders directly in the folder.
  """
  patterns = list(exclude)
  tops = [path for path in folder.iterdir() if not any(path.match(pattern) for pattern in patterns)]
  files = sorted(path for top in tops for path in (top.rglob("*") if top.is_dir() else (top,)))
  return {
    path.relative_to(folder).as_posix(): {"sha256": _digest(path), "bytes": path.stat().st_size}
    for path in files
    if path.is_file()
  }


def find_problems(
  folder: Path, recorded: Mapping[str, Mapping[str, Any]], subpath: str = ""
) -> dict[str, str]:
  """Problems of files, by relative path; {} for intact files.

  Args:
    folder: of the files.
    recorded: result of `file_digests` when the files were written.
    subpath: checks only this file or folder; '': all.
  """
  problems = {}
  for name, expected in recorded.items():
    path = folder / name
    if subpath and name != subpath and not name.startswith(f"{subpath}/"):
      continue
    try:
      size = path.stat().st_size
      if size != expected["bytes"]:
        problems[name] = f"is damaged ({size:,} bytes, not {expected['bytes']:,})"
      elif _digest(path) != expected["sha256"]:
        problems[name] = "is damaged (its bytes differ from the written ones)"
    except (FileNotFoundError, NotADirectoryError):
      problems[name] = "is missing"
    except OSError as error:
      problems[name] = f"cannot be read ({_describe_error(error)})"
  return problems


def _digest(path: Path) -> str:
  path = path.absolute()
  stat = path.stat()
  stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
  if _DIGESTS.get(path, (None, ""))[0] != stamp:
    with open(path, "rb") as file:
      _DIGESTS[path] = stamp, hashlib.file_digest(file, "sha256").hexdigest()
  return _DIGESTS[path][1]


def _describe_error(error: Exception) -> str:
  return " ".join(str(error).split())[:100] or type(error).__name__
