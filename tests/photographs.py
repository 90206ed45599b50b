"""Real images for tests of augmentation."""

import functools

import numpy as np
from sklearn.datasets import load_sample_image

from smskd_jax import data


@functools.cache
def rgb(n=24, size=32):
  """Pieces of the two photographs that come with scikit-learn, half of them coarse: [n, size, size, 3]."""
  pieces = []
  for name in ("china.jpg", "flower.jpg"):
    photograph = load_sample_image(name)
    for view in (photograph[::5, ::5], photograph):
      h, w = (side // size for side in view.shape[:2])
      cut = (
        view[: h * size, : w * size].reshape(h, size, w, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
      )
      pieces.append(cut[np.linspace(0, len(cut) - 1, n // 4).astype(int)])
  return np.concatenate(pieces)


@functools.cache
def grey(n=24):
  """Clothes: [n, 28, 28, 1]."""
  return np.asarray(data.load("fashion_mnist_small").test.image[:n])
