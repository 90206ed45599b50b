"""The 1,797 handwritten digits that come with scikit-learn: small enough for unit tests.

Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49

scikit-learn has only the test part of that set, and nothing says who wrote what. So the split is our own: a
fifth of each class for testing, drawn with a fixed seed.
"""

import numpy as np

from smskd_jax.data.dataset import RawSplits, Split
from smskd_jax.data.splits import stratified_mask


def read_digits(argument: str, folder: str) -> RawSplits:
  """Images of [8, 8]; their 17 shades are spread over 0..255."""
  del argument, folder
  from sklearn.datasets import load_digits

  bunch = load_digits()
  image = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
  label = bunch.target
  test = stratified_mask(label, 0.2, seed=0)
  names = tuple(str(name) for name in bunch.target_names)
  return RawSplits(Split(image[~test], label[~test]), Split(image[test], label[test]), names)
