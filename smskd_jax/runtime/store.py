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
from typing import Any

import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import processes

# Raised when a change of the code changes the numbers: entries of another format are refused.
FORMAT = 5


def key_of(description: Mapping[str, Any]) -> str:
  """The key of what a description says: 16 hexadecimal digits."""
  text = json.dumps(description, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Entry:
  """The folder of one key in a store."""

  def __init__(self, store: Path, key: str):
    """Names the folder; nothing is written."""
    self.key = key
    self.folder = store / key
    self.checkpoints = self.folder / "checkpoints"
    self.metrics = self.folder / "metrics.jsonl"
    self.choices = self.folder / "choices.npz"
    self.answers = self.folder / "answers.npz"
    self.lesson = self.folder / "lesson.npz"
    self.optimizer = self.folder / "optimizer.npz"
    self.final = self.folder / "final"
    self.best = self.folder / "best"  # where a stage ends with its best state: that of so far

  def result(self) -> dict[str, Any] | None:
    """What the finished stage left, or None if it is not finished.

    Raises:
      UserError: the entry is of another format.
    """
    stage = read_json(self.folder / "stage.json")
    if stage is not None and stage["format"] != FORMAT:
      raise UserError(
        f"store entry {self.folder} is of format {stage['format']}, this version's is {FORMAT}; "
        "remove it or use another --store"
      )
    return read_json(self.folder / "result.json")

  def about(self) -> dict[str, Any]:
    """What is stated beside the key and not hashed; nothing where the folder is no entry."""
    return (read_json(self.folder / "stage.json") or {}).get("about", {})

  def begin(self, description: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes down what the key stands for, and beside it what is not hashed."""
    write_json(self.folder / "stage.json", {"format": FORMAT, "hashed": description, "about": about})

  def finish(self, result: Mapping[str, Any]) -> None:
    """Marks the stage as finished: the last thing written. The checkpoints have served."""
    processes.meet()
    write_json(self.folder / "result.json", result)
    if processes.is_lead():
      for folder in (self.checkpoints, self.best):
        shutil.rmtree(folder, ignore_errors=True)
    processes.meet()

  @contextlib.contextmanager
  def lock(self, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the key, against other runs. The system lets go of it even if the process is killed.

    Of several processes of a run the lead holds it for all.
    """
    if not processes.is_lead():
      processes.meet()
      yield
      return
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.folder / "lock", "w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        waiting(f"another process trains {self.key}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
      processes.meet()
      yield


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file atomically: it is there whole or not at all. The lead does, of several processes."""
  if not processes.is_lead():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "w") as file:
    file.write(json.dumps(value, indent=2) + "\n")
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a file of arrays atomically: it is there whole or not at all. The lead does, of several processes."""
  if not processes.is_lead():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "wb") as file:
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
  temporary.replace(path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a file by their names."""
  # A file that np.load opens itself stays open where it is damaged.
  with open(path, "rb") as stream, np.load(stream) as file:
    return dict(file)


def read_json(path: Path) -> Any:
  """The value in a JSON file; None where there is no file."""
  return json.loads(path.read_text()) if path.exists() else None
