"""What a network took each held-out image for, evaluation after evaluation: which images it learned and forgot."""

from collections.abc import Mapping
import contextlib
from pathlib import Path

import numpy as np

from smskd_jax.runtime import checkpoint, integrity, store
from smskd_jax.runtime.integrity import DamagedFileError


class PredictionsWriter:
  """Appends to a stage's predictions.npz: 'step' [evaluations], and by the name of a set [evaluations, n]."""

  def __init__(self, path: Path, *, last_step: int, digest: str | None = None):
    """Reads what is there, up to `last_step`: what an interrupted run wrote later, it will write again.

    Args:
      path: of the file.
      last_step: of the evaluations to keep; -1: of none.
      digest: what `digest` was at `last_step`. Evaluations that are others are dropped, and `lost` is true; None: any
        will do.
    """
    self._path, self.lost = path, False
    self._kept: dict[str, np.ndarray] = {}
    if last_step >= 0:
      with contextlib.suppress(DamagedFileError):
        found = read(path)
        kept = found["step"] <= last_step
        self._kept = {name: array[kept] for name, array in found.items()}
      if digest is not None and digest != self.digest:
        self._kept, self.lost = {}, True

  @property
  def digest(self) -> str:
    """Of all evaluations."""
    return checkpoint.tree_digest(self._kept)

  def write(self, step: int, choices: Mapping[str, np.ndarray]) -> None:
    """Appends an evaluation; the file is there whole or not at all."""
    new = {"step": np.array([step], np.int32)}
    new |= {name: _smallest_dtype(array)[None] for name, array in choices.items()}
    self._kept = {name: np.concatenate([self._kept[name], x]) if self._kept else x for name, x in new.items()}
    store.write_arrays(self._path, self._kept)


def read(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a predictions.npz.

  Raises:
    Damaged: it is, or is not there.
  """
  return integrity.read_arrays(path)


def _smallest_dtype(choices: np.ndarray) -> np.ndarray:
  return choices.astype(np.uint16 if choices.max(initial=0) < 2**16 else np.int32)
