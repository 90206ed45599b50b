"""Draws the subset of Fashion-MNIST that comes with this package.

  python -m smskd_jax.data.make_fashion_mnist_small

needs Debian's package dataset-fashion-mnist and writes fashion_mnist_small.npz beside this file, the same at
every call.
"""

import numpy as np

from smskd_jax.data import idx
from smskd_jax.data.dataset import Split
from smskd_jax.data.npz import FASHION_MNIST_SMALL_FILE

SEED = 0


def sample_subset() -> dict[str, np.ndarray]:
  """600 training and 200 test images of each class, in random order."""
  train, test = idx.read_fashion_mnist("", "")[:2]
  rng = np.random.RandomState(SEED)  # whose stream NumPy has frozen
  train, test = _sample_per_class(rng, train, 600), _sample_per_class(rng, test, 200)
  return {
    "train_images": train.image[:],
    "train_labels": train.label,
    "test_images": test.image[:],
    "test_labels": test.label,
    "class_names": np.array(idx.CLASS_NAMES),
  }


def _sample_per_class(rng: np.random.RandomState, split: Split, count: int) -> Split:
  members = [rng.permutation(np.flatnonzero(split.label == k))[:count] for k in range(len(idx.CLASS_NAMES))]
  order = rng.permutation(np.concatenate(members))
  return Split(split.image[order], split.label[order])


if __name__ == "__main__":
  np.savez_compressed(FASHION_MNIST_SMALL_FILE, allow_pickle=False, **sample_subset())
