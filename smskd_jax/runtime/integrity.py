"""Checks that files are as they were written: a checksum inside each JSON file, and lists of digests of other files."""

from collections.abc import Iterable, Mapping
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from smskd_jax.errors import UserError

CHECKSUM = "sha256"  # of all else in a JSON file

# By path: (time of the last change, size and inode, SHA-256), so that a process reads no unchanged file twice.
_DIGESTS: dict[Path, tuple[tuple[int, int, int], str]] = {}


class DamagedFileError(UserError):
  """A file is not as it was written, or is missing."""

  def __init__(self, path: Path, problem: str, fix: str = ""):
    """Names the file, what is wrong with it and, if anything is known of it, the way out."""
    super().__init__(f"{path} {problem}" + (f"; {fix}" if fix else ""))
    self.path, self.problem = path, problem


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
  """The content of a JSON file, with its checksum."""
  plain = json.loads(json.dumps(value))
  return plain | {CHECKSUM: _checksum(plain)}


def _checksum(plain: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_json(path: Path, fix: str = "") -> dict[str, Any]:
  """The content of a JSON file without its checksum. Files of older versions have none, and are taken as they are.

  Args:
    path: of the file.
    fix: the way out, for the message.

  Raises:
    Damaged: it is, or is not there.
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
  """The arrays of a .npz file by their names; its format has checksums.

  Raises:
    Damaged: it is, or is not there.
  """
  try:
    with open(path, "rb") as file, np.load(file) as arrays:  # np.load alone leaves a damaged file open
      return dict(arrays)
  except FileNotFoundError:
    raise DamagedFileError(path, "is missing") from None
  except Exception as error:  # zipfile, zlib and NumPy raise what they like
    raise DamagedFileError(path, f"is damaged ({_describe_error(error)})") from None


def file_digests(folder: Path, leave_out: Iterable[str]) -> dict[str, dict[str, Any]]:
  """By relative path, the SHA-256 and the size in bytes of every file in a folder.

  Args:
    folder: to be listed.
    leave_out: patterns of the names of files and folders directly in it.
  """
  patterns = list(leave_out)
  tops = [path for path in folder.iterdir() if not any(path.match(pattern) for pattern in patterns)]
  files = sorted(path for top in tops for path in (top.rglob("*") if top.is_dir() else (top,)))
  return {
    path.relative_to(folder).as_posix(): {"sha256": _digest(path), "bytes": path.stat().st_size}
    for path in files
    if path.is_file()
  }


def find_problems(folder: Path, listed: Mapping[str, Mapping[str, Any]], under: str = "") -> dict[str, str]:
  """By relative path, what is wrong with the files of a list of `digests`; {}: nothing.

  Args:
    folder: of the files.
    listed: what they should be.
    under: look at this file, or the files of this folder, alone; '': at all.
  """
  found = {}
  for name, expected in listed.items():
    path = folder / name
    if under and name != under and not name.startswith(f"{under}/"):
      continue
    try:
      size = path.stat().st_size
      if size != expected["bytes"]:
        found[name] = f"is damaged ({size:,} bytes, not {expected['bytes']:,})"
      elif _digest(path) != expected["sha256"]:
        found[name] = "is damaged (its bytes are not those that were written)"
    except (FileNotFoundError, NotADirectoryError):
      found[name] = "is missing"
    except OSError as error:
      found[name] = f"cannot be read ({_describe_error(error)})"
  return found


def _digest(path: Path) -> str:
  path = path.absolute()
  stat = path.stat()
  mark = stat.st_mtime_ns, stat.st_size, stat.st_ino
  if _DIGESTS.get(path, (None, ""))[0] != mark:
    with open(path, "rb") as file:
      _DIGESTS[path] = mark, hashlib.file_digest(file, "sha256").hexdigest()
  return _DIGESTS[path][1]


def _describe_error(error: Exception) -> str:
  return " ".join(str(error).split())[:100] or type(error).__name__
