"""Checkpoints of a stage, and files of variables; the only module that uses orbax.

Saving is asynchronous and atomic: the folder of a step appears once it is complete. Beside the state, a checkpoint
stores a digest of every byte, because damaged files may still be readable, and JSON metadata of the run at this step.
"""

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.runtime import distributed
from smskd_jax.runtime.store import StageEntry


class Restored(NamedTuple):
  """Content of a checkpoint."""

  step: int
  state: Any
  metadata: dict[str, Any]


class Checkpoints:
  """The checkpoints of one stage."""

  def __init__(self, folder: Path, *, max_to_keep: int = 2):
    """Opens the folder; only the newest `max_to_keep` checkpoints are kept."""
    from orbax.checkpoint import v1 as ocp  # a late import of half a second, for --help

    self._folder = folder
    self._pending: Any = None  # response of the last save, until its result is taken
    self._orbax = ocp.training.Checkpointer(
      folder.absolute(),
      preservation_policy=ocp.training.preservation_policies.LatestN(max_to_keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Starts a save, after the previous save has ended; `state` may be donated afterwards.

    Raises:
      Exception: the previous save failed, as on a full disk.
    """
    self.wait()
    if step in self.steps():
      return
    state = jax.device_get(state)
    stored = {"digest": tree_digest(state), "metadata": metadata}
    self._pending = self._orbax.save_async(step, state, custom_metadata=stored)

  def restore(self, like: Any, warn: Callable[[str], None]) -> Restored | None:
    """Restores the newest intact checkpoint; None if there is none.

    Args:
      like: a state of the same structure, shapes, types and placement.
      warn: receives a line about each damaged checkpoint, which is deleted.
    """
    for step in distributed.broadcast(sorted(self.steps(), reverse=True)):
      restored, problem = None, ""
      try:
        restored = self._load(step, like)
      except Exception as error:  # orbax and its storage raise errors of many types on damaged files
        problem = _first_line(error) or "?"
      problems = [text for text in distributed.all_gather_json(problem) if text]
      if not problems:
        return restored
      warn(f"checkpoint {self._folder / str(step)} is damaged ({problems[0]}); trying the one before")
      self._orbax.delete(step)
    return None

  def _load(self, step: int, like: Any) -> Restored:
    metadata = self._orbax.metadata(step).custom_metadata
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    state = self._orbax.load(step, abstract)
    if tree_digest(jax.device_get(state)) != metadata["digest"]:
      raise ValueError("its bytes differ from the saved ones")
    return Restored(step, state, metadata["metadata"])

  def steps(self) -> list[int]:
    """The steps that have checkpoints."""
    return [checkpoint.step for checkpoint in self._orbax.checkpoints]

  def close(self) -> None:
    """Waits for the pending save and closes the folder.

    Raises:
      Exception: the save failed.
    """
    try:
      self.wait()
    finally:
      self._orbax.close()

  def wait(self) -> None:
    """Waits for the pending save, if any, and raises its error.

    Each response holds an event loop, with a thread and three file handles, until its result is taken.
    """
    response, self._pending = self._pending, None
    if response is not None:
      response.result()


def saved_steps(folder: Path) -> list[int]:
  """The steps with complete checkpoints in a folder; [] for an unreadable folder."""
  try:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  except OSError:
    return []


def tree_digest(tree: Any) -> str:
  """SHA-256 of a tree of host arrays: structure, shapes, types and every byte."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def save_variables(path: Path, variables: Any) -> None:
  """Writes a network's variables; replaces the remains of an interrupted attempt."""
  from orbax.checkpoint import v1 as ocp

  ocp.save(path.absolute(), jax.device_get(variables), overwrite=True)


def load_variables(path: Path) -> Any:
  """Reads a network's variables as host arrays."""
  from orbax.checkpoint import v1 as ocp

  return jax.tree.map(np.asarray, ocp.load(path.absolute()))


def load_final(store: Path, key: str) -> Any:
  """Final variables of a finished stage, as host arrays.

  Args:
    store: folder of the store.
    key: of the stage.

  Raises:
    DamagedFileError: a file of them is damaged.
  """
  entry = StageEntry(store, key)
  return load_variables(entry.verified(entry.final))


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0][:200] or type(error).__name__
