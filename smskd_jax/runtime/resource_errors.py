"""Explains errors of exhausted resources in one line.

Disk space, permissions, file handles, memory, threads.
"""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import os
from pathlib import Path
import resource
import tempfile

# Error number of a disk -> (state of the folder, remedy).
_DISK_CODES = {
  errno.ENOSPC: ("is full", "free some space"),
  errno.EDQUOT: ("is full for this user (quota)", "free some space"),
  errno.EROFS: ("has become read-only", "make it writable"),
  errno.EACCES: ("may not be written to or read", "change its permissions"),
  errno.EPERM: ("may not be changed", "change its permissions"),
  errno.EIO: ("fails (input/output error)", "check its disk"),
}
_HANDLE_CODES = (errno.EMFILE, errno.ENFILE)
_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "bad_alloc", os.strerror(errno.ENOMEM))
_PROBE = 2**20  # bytes of the test file that shows whether a folder accepts files


def explain(error: BaseException, folders: Mapping[str, str | Path | None]) -> str | None:
  """One line about the exhausted resource behind an error, and the remedy.

  None for other errors.

  Args:
    error: a program's error. A note that a stage added to the error names the step to continue from.
    folders: folders that the program writes to, by flag; None: flag not given.
  """
  errors = list(_chain(error))
  code = next(filter(None, map(_errno, errors)), None)
  if code in _DISK_CODES:
    problem, remedy = _explain_disk(
      code, errors, {flag: Path(path) for flag, path in folders.items() if path}
    )
  elif code in _HANDLE_CODES:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    problem, remedy = (
      f"too many open files, of which a process may have {limit:,} here",
      "raise it by `ulimit -n`",
    )
  elif any(map(_is_memory_error, errors)):
    problem, remedy = "out of memory", "use smaller batches or networks, or end other programs"
  elif any("can't start new thread" in str(one) for one in errors):
    problem, remedy = "no more threads can be started", "raise their number by `ulimit -u`"
  else:
    return None
  notes = [note for one in errors for note in getattr(one, "__notes__", ()) if note.startswith("stage ")]
  return f"{problem}; {''.join(f'{note}; ' for note in notes[:1])}{remedy}, and the same command continues from there"


def _chain(error: BaseException) -> Iterator[BaseException]:
  """An error, its causes and contexts, and the members of exception groups."""
  visited, waiting = set[int](), [error]
  while waiting:
    one = waiting.pop(0)
    if id(one) not in visited:
      visited.add(id(one))
      yield one
      waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
      waiting += getattr(one, "exceptions", ())


def _errno(error: BaseException) -> int | None:
  """The error number of a disk or system error; libraries may pass on only its text."""
  known = (*_DISK_CODES, *_HANDLE_CODES)
  if isinstance(error, OSError) and error.errno in known:
    return error.errno
  return next((code for code in known if os.strerror(code) in str(error)), None)


def _is_memory_error(error: BaseException) -> bool:
  return isinstance(error, MemoryError) or any(words in str(error) for words in _MEMORY_WORDS)


def _explain_disk(code: int, errors: list[BaseException], folders: Mapping[str, Path]) -> tuple[str, str]:
  state, remedy = _DISK_CODES[code]
  full = code in (errno.ENOSPC, errno.EDQUOT)
  named = next((Path(os.fsdecode(e.filename)) for e in errors if isinstance(e, OSError) and e.filename), None)
  known = {flag: _existing_folder(path) for flag, path in folders.items()}
  bad = {flag: path for flag, path in known.items() if _refuses_write(path)}
  if not bad and full:  # space was freed in the meantime, or is too small for the file
    bad = dict(sorted(known.items(), key=lambda item: _free_bytes(item[1]))[: named is None])
  location = ", ".join(f"{flag}: {folders[flag]}" for flag in bad) or str(
    named or "a folder of temporary files"
  )
  if full and bad:
    state += f" ({min(map(_free_bytes, bad.values())) / 1e6:.1f} MB left)"
  return f"{location} {state}", remedy


def _existing_folder(path: Path) -> Path:
  return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _refuses_write(folder: Path) -> bool:
  """True if writing a file of `_PROBE` bytes to a folder fails."""
  try:
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(_PROBE))
      file.flush()
      os.fsync(file.fileno())
  except OSError:
    return True
  return False


def _free_bytes(folder: Path) -> int:
  with contextlib.suppress(OSError):
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
  return 0
