"""What is trained once is never trained again: the keys of stages, and what lies under them.

A stage's key is the hash of everything that its result depends on: its own config, the networks' configs, the seed,
its place in the experiment, the data's fingerprint and the keys of the stages it reads.
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
  """The key of what a description says: 16 hexadecimal digits."""
  text = json.dumps(description, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


# What the list of a finished stage's files leaves out: itself, what is removed, and the cached outputs of the network,
# which grow and have checksums of their own.
_NOT_LISTED = "result.json", "lock", "checkpoints", "views-*", ".*"


class StageEntry:
  """The folder of one key in a store."""

  def __init__(self, store: Path, key: str):
    """Names the folder; nothing is written."""
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
    """What the finished stage left, or None if it is not finished.

    Raises:
      UserError: the entry is of another format.
      Damaged: the files that say so are damaged or missing.
    """
    found = self._finished()
    return None if found is None else {name: value for name, value in found.items() if name != "files"}

  def _finished(self) -> dict[str, Any] | None:
    about, result = self.folder / "stage.json", self.folder / "result.json"
    if about.exists() or result.exists():
      written = read_json(about).get("format")
      if written != FORMAT:
        raise UserError(
          f"store entry {self.folder} is of format {written}, this version's is {FORMAT}; "
          "remove it or use another --store"
        )
    return read_json(result) if self._is_finished() else None

  def _is_finished(self) -> bool:
    """True if result.json is there or was lost."""
    # A stage in training has a folder of checkpoints from its beginning until its result is written.
    lost = self.final.exists() and not self.checkpoints.exists()
    return lost or (self.folder / "result.json").exists()

  def state(self) -> str:
    """'in the store', 'damaged' or, of a stage that is not finished, ''. Looks at no more than two small files.

    Raises:
      UserError: the entry is of another format.
    """
    try:
      return "" if self._finished() is None else "in the store"
    except DamagedFileError:
      return "damaged"

  def problems(self, under: str = "") -> dict[str, str]:
    """By relative path, what is wrong with the files that the finished stage left; {}: nothing.

    Args:
      under: look at this file or folder alone; '': at all.
    """
    try:
      listed = read_json(self.folder / "result.json").get("files", {}) if self._is_finished() else {}
    except DamagedFileError as error:
      return {error.path.name: error.problem}
    return integrity.find_problems(self.folder, listed, under)

  def verified(self, path: Path) -> Path:
    """The path of a file or folder of the entry, once it is known to be as the finished stage left it.

    Raises:
      Damaged: it is not.
    """
    for name, problem in self.problems(path.name).items():
      raise DamagedFileError(self.folder / name, problem, self.fix())
    return path

  def fix(self) -> str:
    """Way out of damage, for messages."""
    return (
      "run the command that trained it again: it trains the stage anew if nothing was built on it, or says what to "
      "remove"
    )

  def metadata(self) -> dict[str, Any]:
    """Facts beside the key that are not hashed; {} for a folder that is no entry.

    Raises:
      Damaged: stage.json is.
    """
    path = self.folder / "stage.json"
    return read_json(self.verified(path)).get("about", {}) if path.exists() else {}

  def write_metadata(self, description: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes down what the key stands for, and beside it what is not hashed."""
    write_json_with_checksum(
      self.folder / "stage.json", {"format": FORMAT, "hashed": description, "about": about}
    )

  def mark_finished(self, result: Mapping[str, Any]) -> None:
    """Marks the stage as finished: the last thing written, with a list of its files. The checkpoints have served."""
    distributed.barrier()
    if distributed.is_primary():
      files = integrity.file_digests(self.folder, _NOT_LISTED)
      write_json_with_checksum(self.folder / "result.json", {**result, "files": files})
      shutil.rmtree(self.checkpoints, ignore_errors=True)
    distributed.barrier()

  def clear(self) -> None:
    """Removes all but the lock, the mark of being finished first. The caller holds the lock."""
    (self.folder / "result.json").unlink(missing_ok=True)
    for path in self.folder.iterdir():
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      elif path.name != "lock":
        path.unlink()

  @contextlib.contextmanager
  def lock(self, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the key, against other runs. The system lets go of it even if the process is killed.

    Of several processes of a run the lead holds it for all.
    """
    if not distributed.is_primary():
      distributed.barrier()
      yield
      return
    with contextlib.ExitStack() as held:
      # Until it is the file that others will find: who removed the entry has removed the file, too.
      while not self._take(held.enter_context(self._open_lock()), waiting):
        pass
      distributed.barrier()
      yield

  def _open_lock(self) -> IO[str]:
    self.folder.mkdir(parents=True, exist_ok=True)
    return open(self.folder / "lock", "w")

  def _take(self, file: IO[str], waiting: Callable[[str], None]) -> bool:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      waiting(f"another process trains {self.key}; waiting for it")
      fcntl.flock(file, fcntl.LOCK_EX)
    with contextlib.suppress(FileNotFoundError):
      return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file atomically: it is there whole or not at all. The lead does, of several processes."""
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
  """Writes a JSON file that holds its own checksum, for `integrity.read_json`."""
  write_json(path, integrity.with_checksum(value))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file of arrays atomically: it is there whole or not at all. The lead does, of several processes."""
  if not distributed.is_primary():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "wb") as file:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
