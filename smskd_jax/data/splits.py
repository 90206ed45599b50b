"""Splits that keep the proportions of the classes."""

import numbers

import numpy as np

from smskd_jax.data.dataset import Dataset
from smskd_jax.errors import UserError


def stratified_mask(label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Draws round(fraction * count) examples of every class.

  Args:
    label: [n], integers.
    fraction: what part of each class to draw, in [0, 1].
    seed: 0 <= seed < 2**32.

  Returns:
    [n], bool: True for the examples that were drawn.
  """
  # Not default_rng: NumPy promises only for RandomState that its next version draws the same split.
  rng = np.random.RandomState(seed)
  drawn = np.zeros(len(label), bool)
  for k in np.unique(label):
    members = rng.permutation(np.flatnonzero(label == k))
    drawn[members[: round(fraction * len(members))]] = True
  return drawn


def check_split_options(fraction: float, seed: int) -> None:
  """Raises UserError where the fraction or the seed is none; needs no data, so a run can fail at once."""
  if not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
    raise UserError(f"data.validation: {fraction!r} is not a fraction of train; give 0 <= fraction < 1")
  if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
    raise UserError(f"data.split_seed: {seed!r} is not a seed; give a whole number, 0 <= seed < 2**32")


def split_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
  """Moves a fraction of each class from train to validation; both keep the source's order."""
  check_split_options(fraction, seed)
  if not fraction:
    return dataset
  label = dataset.train.label
  held = stratified_mask(label, fraction, seed)
  for k, count in zip(*np.unique(label, return_counts=True), strict=True):
    if not 0 < np.sum(held & (label == k)) < count:
      of_class = f"{fraction} of the {count} train images of class {dataset.class_names[k]!r}"
      raise UserError(
        f"data.validation: {of_class} leaves train or validation without any; give another fraction, or 0"
      )
  return dataset._replace(train=dataset.train.take(~held), validation=dataset.train.take(held))
