"""Outputs of networks on held-out images: eval_outputs.npz and predictions.npz.

The first at a stage's end, the second at every evaluation.

Reports and comparisons read these files and need no network. The arrays of eval_outputs.npz:

  'SET/logits' [n, k], for each held-out set;
  'index' [m], indices in the test set of the images with stored features;
  'test/feature_0', 'test/feature_1', ... [m, c], feature maps averaged over positions, the stem's first;
  'test/embedding' [m, d], the input of the classifier.

The last three are absent where no features are stored. The arrays of predictions.npz are 'step' [evaluations] and, by
name of a held-out set, the predicted classes [evaluations, n].
"""

from collections.abc import Mapping
import contextlib
from pathlib import Path

import numpy as np

from smskd_jax.runtime import checkpoint, integrity, store
from smskd_jax.runtime.integrity import DamagedFileError

EvalOutputs = dict[str, np.ndarray]


def write(path: Path, outputs: EvalOutputs) -> None:
  """Writes an eval_outputs.npz atomically."""
  store.write_arrays(path, outputs)


def read(path: Path) -> EvalOutputs:
  """The arrays of an eval_outputs.npz or predictions.npz.

  Raises:
    DamagedFileError: the file is damaged or missing.
  """
  return integrity.read_arrays(path)


def logits(outputs: EvalOutputs) -> dict[str, np.ndarray]:
  """The logits [n, k] by name of the set."""
  return {name.rpartition("/")[0]: array for name, array in outputs.items() if name.endswith("/logits")}


def features(outputs: EvalOutputs) -> dict[str, np.ndarray]:
  """The features [m, c] of test images by name, in the order of the network.

  {} where none are stored.
  """
  layers = [f"feature_{i}" for i in range(len(outputs)) if f"test/feature_{i}" in outputs]
  names = [*layers, "embedding"] if "test/embedding" in outputs else []
  return {name: outputs[f"test/{name}"] for name in names}


class PredictionsWriter:
  """Appends evaluations to a stage's predictions.npz."""

  def __init__(self, path: Path, *, last_step: int, digest: str | None = None):
    """Reads the stored evaluations up to `last_step`; a continued run writes later ones again.

    Args:
      path: of the file.
      last_step: of the evaluations to keep; -1: of none.
      digest: value of the property `digest` at `last_step`. Evaluations with another digest are discarded, and
        `discarded` is True; None: no check.
    """
    self._path, self.discarded = path, False
    self._arrays: dict[str, np.ndarray] = {}
    if last_step >= 0:
      with contextlib.suppress(DamagedFileError):
        arrays = read(path)
        rows = arrays["step"] <= last_step
        self._arrays = {name: array[rows] for name, array in arrays.items()}
      if digest is not None and digest != self.digest:
        self._arrays, self.discarded = {}, True

  @property
  def digest(self) -> str:
    """Digest of all evaluations."""
    return checkpoint.tree_digest(self._arrays)

  def write(self, step: int, predictions: Mapping[str, np.ndarray]) -> None:
    """Appends an evaluation; replaces the file atomically."""
    new = {"step": np.array([step], np.int32)}
    new |= {name: _to_small_dtype(array)[None] for name, array in predictions.items()}
    self._arrays = {
      name: np.concatenate([self._arrays[name], x]) if self._arrays else x for name, x in new.items()
    }
    store.write_arrays(self._path, self._arrays)


def _to_small_dtype(classes: np.ndarray) -> np.ndarray:
  return classes.astype(np.uint16 if classes.max(initial=0) < 2**16 else np.int32)
