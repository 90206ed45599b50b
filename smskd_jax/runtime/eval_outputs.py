"""What a network says of the held-out images at its end: for pictures and comparisons that need no network.

A file of arrays:

  'SET/logits' [n, k], of each held-out set;
  'index' [m], the places in the test set of the images of which features are kept;
  'test/tap_0', 'test/tap_1', ... [m, c], the feature maps averaged over their positions, the stem's first;
  'test/embedding' [m, d], the embedding that the classifier sees.

Where no features are kept the last three are not there.
"""

from pathlib import Path

import numpy as np

from smskd_jax.runtime import integrity, store

EvalOutputs = dict[str, np.ndarray]


def write(path: Path, outputs: EvalOutputs) -> None:
  """Writes the file; it is there whole or not at all."""
  store.write_arrays(path, outputs)


def read(path: Path) -> EvalOutputs:
  """The arrays of a file.

  Raises:
    Damaged: it is, or is not there.
  """
  return integrity.read_arrays(path)


def logits(outputs: EvalOutputs) -> dict[str, np.ndarray]:
  """The logits [n, k] by the name of the set."""
  return {name.rpartition("/")[0]: array for name, array in outputs.items() if name.endswith("/logits")}


def features(outputs: EvalOutputs) -> dict[str, np.ndarray]:
  """The features [m, c] of test images by their names, in the order of the network; none if none are kept."""
  taps = [f"tap_{i}" for i in range(len(outputs)) if f"test/tap_{i}" in outputs]
  names = [*taps, "embedding"] if "test/embedding" in outputs else []
  return {name: outputs[f"test/{name}"] for name in names}
