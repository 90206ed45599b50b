"""What a network took each held-out image for, evaluation after evaluation: which images it learned and forgot."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smskd_jax.runtime import store


class Choices:
  """Appends to a stage's choices.npz: 'step' [evaluations], and by the name of a set [evaluations, n]."""

  def __init__(self, path: Path, *, last_step: int):
    """Reads what is there, up to `last_step`: what an interrupted run wrote later, it will write again."""
    self._path = path
    self._kept: dict[str, np.ndarray] = {}
    if path.exists() and last_step >= 0:
      found = read(path)
      kept = found["step"] <= last_step
      self._kept = {name: array[kept] for name, array in found.items()}

  def write(self, step: int, choices: Mapping[str, np.ndarray]) -> None:
    """Appends an evaluation; the file is there whole or not at all."""
    new = {"step": np.array([step], np.int32)}
    new |= {name: _small(array)[None] for name, array in choices.items()}
    self._kept = {name: np.concatenate([self._kept[name], x]) if self._kept else x for name, x in new.items()}
    store.write_arrays(self._path, self._kept)


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a choices.npz."""
  return store.read_arrays(path)


def _small(choices: np.ndarray) -> np.ndarray:
  return choices.astype(np.uint16 if choices.max(initial=0) < 2**16 else np.int32)
