"""Linear centered kernel alignment (CKA): similarity of two networks' representations.

Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019,
https://arxiv.org/abs/1905.00414, equation 4 with linear kernels:

  CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|) = <XX', YY'> / (|XX'| |YY'|)

X [n, p] and Y [n, q] are two networks' representations of n images, less their means over the images; norms are
Frobenius norms. CKA is between 0 and 1 and invariant to rotations, scalings and shifts of either representation, but
not to every linear map: directions of large variance count for more. CKA is biased upwards for few images: for
independent representations with many features it is far from zero until n is well above p and q.

Difference: the paper's features are all neurons of a layer, each position of a map included. Here a map [b, h, w, c] is
first averaged over its positions, because p would be h w c, tens of thousands in early layers; what is compared is
which channels are active, not where.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CkaTable(NamedTuple):
  """Linear CKA of each feature of one network with each feature of another, for JSON files."""

  student: list[str]  # names of the features in the rows
  other: list[str]  # names of the features in the columns
  cka: list[list[float | None]]  # None where CKA is not defined: JSON has no NaN


def cka_table(student: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> CkaTable:
  """Linear CKA of all features [n, c] of one network, by name, with all features of another.

  Raises:
    ValueError: as `linear_cka`.
  """
  rows = [[linear_cka(x, y) for y in other.values()] for x in student.values()]
  values = [[None if np.isnan(value) else value for value in row] for row in rows]
  return CkaTable(list(student), list(other), values)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
  """Linear CKA of two representations, in float64.

  Computed from the products of examples [n, n] or of features [p, q], whichever is less work.

  Args:
    x: [n, p], not necessarily centered.
    y: [n, q], of the same examples.

  Returns:
    In [0, 1]; NaN where a representation is constant over the examples.

  Raises:
    ValueError: other shapes, or fewer than two examples.
  """
  if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
    raise ValueError(f"representations must be [n, p] and [n, q] of the same n, not {x.shape} and {y.shape}")
  if len(x) < 2:
    raise ValueError(f"CKA needs at least 2 examples, not {len(x)}")
  x, y = _center(x), _center(y)
  (n, p), q = x.shape, y.shape[1]
  if n * (p + q) < p * p + q * q + p * q:
    xx, yy = x @ x.T, y @ y.T
    return _ratio(np.sum(xx * yy), xx, yy)
  return _ratio(np.sum(np.square(x.T @ y)), x.T @ x, y.T @ y)


def mean_pool(features: jax.Array) -> jax.Array:
  """Features [b, ..., c] averaged over all positions, [b, c], in float32 or wider."""
  if features.ndim < 2:
    raise ValueError(f"features must be [b, d] or [b, h, w, c], not of shape {features.shape}")
  wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  return jnp.mean(wide, axis=tuple(range(1, features.ndim - 1)))


def _center(x: np.ndarray) -> np.ndarray:
  """The representation less its mean over the examples, in float64.

  The result is exactly zero where all examples are equal.
  """
  x = x.astype(np.float64)
  x = x - x[:1]
  return x - np.mean(x, axis=0, keepdims=True)


def _ratio(product: np.floating, xx: np.ndarray, yy: np.ndarray) -> float:
  norms = np.linalg.norm(xx) * np.linalg.norm(yy)
  return float(product / norms) if norms > 0 else float("nan")
