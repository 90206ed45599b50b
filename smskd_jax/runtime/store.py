"""Store of trained stages: the key of a stage, and the files under the key.

A stage's key is the hash of everything that its result depends on: its config, the networks' configs, the seed, its
index in the experiment, the data's fingerprint and the keys of its input stages. A stage with a known key is never
trained again.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import IO, Any

import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import distributed, integrity
from smskd_jax.runtime.integrity import DamagedFileError, read_json

# Raised when a change of the code changes the numbers: entries of another format are refused.
FORMAT = 6


def key_of(description: Mapping[str, Any]) -> str:
  """The key of a description, a JSON value: 16 hexadecimal digits of its SHA-256."""
  text = json.dumps(description, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


# Files without digests in result.json: the file itself, temporary files, and caches of outputs, which grow after the
# stage and have their own checksums.
_UNLISTED = "result.json", "lock", "checkpoints", "views-*", ".*"


class StageEntry:
  """The folder of one key in a store."""

  def __init__(self, store: Path, key: str):
    """Sets the paths of the entry; writes nothing."""
    self.key = key
    self.folder = store / key
    self.checkpoints = self.folder / "checkpoints"
    self.metrics = self.folder / "metrics.jsonl"
    self.predictions = self.folder / "predictions.npz"
    self.eval_outputs = self.folder / "eval_outputs.npz"
    self.method_state = self.folder / "method_state.npz"
    self.optimizer = self.folder / "optimizer.npz"
    self.final = self.folder / "final"

  def result(self) -> dict[str, Any] | None:
    """The result of the finished stage; None if the stage is not finished.

    Raises:
      UserError: the entry is of another format.
      DamagedFileError: stage.json or result.json is damaged or missing.
    """
    result = self._read_finished()
    return None if result is None else {name: value for name, value in result.items() if name != "files"}

  def _read_finished(self) -> dict[str, Any] | None:
    stage, result = self.folder / "stage.json", self.folder / "result.json"
    if stage.exists() or result.exists():
      stored = read_json(stage).get("format")
      if stored != FORMAT:
        raise UserError(
          f"store entry {self.folder} is of format {stored}, this version's is {FORMAT}; "
          "remove it or use another --store"
        )
    return read_json(result) if self._is_finished() else None

  def _is_finished(self) -> bool:
    """True if result.json exists or was lost."""
    # A stage in training has a folder of checkpoints from its beginning until its result is written.
    lost = self.final.exists() and not self.checkpoints.exists()
    return lost or (self.folder / "result.json").exists()

  def state(self) -> str:
    """'in the store', 'damaged', or '' for an unfinished stage; reads only two small files.

    Raises:
      UserError: the entry is of another format.
    """
    try:
      return "" if self._read_finished() is None else "in the store"
    except DamagedFileError:
      return "damaged"

  def problems(self, subpath: str = "") -> dict[str, str]:
    """Problems with the files of the finished stage, by relative path; {} for intact files.

    Args:
      subpath: checks only this file or folder; '': all.
    """
    try:
      recorded = read_json(self.folder / "result.json").get("files", {}) if self._is_finished() else {}
    except DamagedFileError as error:
      return {error.path.name: error.problem}
    return integrity.find_problems(self.folder, recorded, subpath)

  def verified(self, path: Path) -> Path:
    """Verifies a file or folder of the entry, and returns its path.

    Raises:
      DamagedFileError: the file is damaged or missing.
    """
    for name, problem in self.problems(path.name).items():
      raise DamagedFileError(self.folder / name, problem, self.fix())
    return path

  def fix(self) -> str:
    """Remedy for damaged files, for messages."""
    return (
      "run the command that trained it again: it trains the stage again if no other stage depends on it, or says what "
      "to remove"
    )

  def metadata(self) -> dict[str, Any]:
    """Information that the key does not depend on; {} for a folder that is no entry.

    Raises:
      DamagedFileError: stage.json is damaged.
    """
    path = self.folder / "stage.json"
    return read_json(self.verified(path)).get("about", {}) if path.exists() else {}

  def write_metadata(self, description: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes stage.json: the hashed description, and metadata that is not hashed."""
    write_json_with_checksum(
      self.folder / "stage.json", {"format": FORMAT, "hashed": description, "about": metadata}
    )

  def mark_finished(self, result: Mapping[str, Any]) -> None:
    """Writes result.json, with digests of all files, as the last file; removes the checkpoints."""
    distributed.barrier()
    if distributed.is_primary():
      files = integrity.file_digests(self.folder, _UNLISTED)
      write_json_with_checksum(self.folder / "result.json", {**result, "files": files})
      shutil.rmtree(self.checkpoints, ignore_errors=True)
    distributed.barrier()

  def clear(self) -> None:
    """Removes all files except the lock, result.json first; the caller holds the lock."""
    (self.folder / "result.json").unlink(missing_ok=True)
    for path in self.folder.iterdir():
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      elif path.name != "lock":
        path.unlink()

  @contextlib.contextmanager
  def lock(self, waiting: Callable[[str], None]) -> Iterator[None]:
    """Context manager of the key's lock against other runs.

    Process 0 holds the lock for all processes of its run.

    The operating system releases the lock even if the process is killed.

    Args:
      waiting: receives a line if another process holds the lock.
    """
    if not distributed.is_primary():
      distributed.barrier()
      yield
      return
    with contextlib.ExitStack() as files:
      # Removal of an entry removes its lock file: retry until the locked file is the one on the disk.
      while not self._try_lock(files.enter_context(self._open_lock()), waiting):
        pass
      distributed.barrier()
      yield

  def _open_lock(self) -> IO[str]:
    self.folder.mkdir(parents=True, exist_ok=True)
    return open(self.folder / "lock", "w")

  def _try_lock(self, file: IO[str], waiting: Callable[[str], None]) -> bool:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      waiting(f"another process trains {self.key}; waiting for it")
      fcntl.flock(file, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
      return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file atomically; only process 0 writes."""
  if not distributed.is_primary():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "w") as file:
    file.write(json.dumps(value, indent=2) + "\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def write_json_with_checksum(path: Path, value: Mapping[str, Any]) -> None:
  """Writes a JSON file with its checksum, for `integrity.read_json`."""
  write_json(path, integrity.with_checksum(value))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a compressed .npz file atomically; only process 0 writes."""
  if not distributed.is_primary():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "wb") as file:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
