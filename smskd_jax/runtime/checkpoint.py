"""Checkpoints: the only place that knows orbax.

A save is asynchronous and atomic: a folder appears under its step once it is whole. Beside the state it holds a
digest of every byte, because a damaged file may still be readable, and a note (JSON) for what belongs to the moment
but not to the state.
"""

from collections.abc import Callable
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.runtime import distributed


class Restored(NamedTuple):
  """What a checkpoint gave back."""

  step: int
  state: Any
  metadata: dict[str, Any]


class Checkpoints:
  """The checkpoints of one stage."""

  def __init__(self, folder: Path, *, keep: int = 2):
    """Opens the folder; the newest `keep` checkpoints are kept."""
    from orbax.checkpoint import v1 as ocp  # imported here: half a second that --help need not wait for

    self._folder = folder
    self._under_way: Any = None  # the response of the last save, until its end is known
    self._orbax = ocp.training.Checkpointer(
      folder.absolute(),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
    """Starts to save; waits for the save before, if it is still under way. `state` may be donated after.

    Raises:
      Exception: the save before has failed, as where the disk is full.
    """
    self.wait()
    if step in self.steps():
      return
    state = jax.device_get(state)
    metadata = {"digest": tree_digest(state), "note": metadata}
    self._under_way = self._orbax.save_async(step, state, custom_metadata=metadata)

  def restore(self, like: Any, warn: Callable[[str], None]) -> Restored | None:
    """The newest checkpoint that is whole, or None.

    Args:
      like: a state of the same structure, shapes, types and placement.
      warn: told of each damaged checkpoint, which is passed over and deleted.
    """
    for step in distributed.broadcast(sorted(self.steps(), reverse=True)):
      restored, problem = None, ""
      try:
        restored = self._load(step, like)
      except Exception as error:  # orbax and its storage raise what they like on a damaged file
        problem = _first_line(error) or "?"
      problems = [told for told in distributed.all_gather_json(problem) if told]
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
      raise ValueError("its bytes are not those that were saved")
    return Restored(step, state, metadata["note"])

  def steps(self) -> list[int]:
    """The steps of which there are checkpoints."""
    return [checkpoint.step for checkpoint in self._orbax.checkpoints]

  def close(self) -> None:
    """Waits for what is being saved.

    Raises:
      Exception: it could not be saved.
    """
    try:
      self.wait()
    finally:
      self._orbax.close()

  def wait(self) -> None:
    """Waits for the save that is under way, if any; raises its error.

    Each response holds an event loop, with a thread and three file handles, until its result is taken.
    """
    response, self._under_way = self._under_way, None
    if response is not None:
      response.result()


def saved_steps(folder: Path) -> list[int]:
  """The steps of which a folder holds whole checkpoints; none where it cannot be read."""
  try:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  except OSError:
    return []


def tree_digest(tree: Any) -> str:
  """A fingerprint of a tree of host arrays: structure, shapes, types and every byte."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.ascontiguousarray(leaf)
    sha.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    sha.update(array.tobytes())
  return sha.hexdigest()


def save_variables(path: Path, variables: Any) -> None:
  """Writes a network's variables, alone; replaces what an interrupted attempt may have left."""
  from orbax.checkpoint import v1 as ocp

  ocp.save(path.absolute(), jax.device_get(variables), overwrite=True)


def load_variables(path: Path) -> Any:
  """Reads a network's variables, as host arrays."""
  from orbax.checkpoint import v1 as ocp

  return jax.tree.map(np.asarray, ocp.load(path.absolute()))


def _first_line(error: Exception) -> str:
  return str(error).partition("\n")[0][:200] or type(error).__name__
