"""How alike two networks' representations of the same images are: linear CKA, at once or batch by batch.

Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019,
https://arxiv.org/abs/1905.00414, equation 4 with linear kernels:

  CKA(X, Y) = |Y'X|^2 / (|X'X| |Y'Y|) = <XX', YY'> / (|XX'| |YY'|)

X [n, p] and Y [n, q] are what the two networks make of n images, less their means over the images; norms are Frobenius
norms. It is between 0 and 1, and the same after a rotation, a scaling or a shift of either representation, but not
after any linear map: directions of large variance count for more. It is biased upwards by few examples: of independent
ones with many features it is far from zero until n is well above p and q.

Differences: the paper's features are all neurons of a layer, and so each position of a map. Here a map [b, h, w, c] is
averaged over its positions first, since p would be h w c, tens of thousands in early layers; what this compares is
which channels are active, not where. Batch by batch the sums are exact, and so the result is that of all examples at
once, unlike the mean over batches of Nguyen, Raghu, Kornblith, "Do Wide and Deep Networks Learn the Same Things?",
ICLR 2021, https://arxiv.org/abs/2010.15327.

  compiled = jax.jit(similarity.batch_sums)
  total = functools.reduce(similarity.update, (compiled(x, y) for x, y in batches))
  similarity.value(total)
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class CkaTable(NamedTuple):
  """Linear CKA of each of one network's features with each of another's, for files."""

  learner: list[str]  # the names of the features in the rows
  other: list[str]  # in the columns
  cka: list[list[float | None]]  # None where it is not defined: JSON has no NaN


class Sums(NamedTuple):
  """Sums over examples of two networks' features and their products: all that linear CKA needs of them.

  All are of features less a fixed offset, which leaves CKA as it is. Without it, features whose mean is large against
  their spread would lose the spread to rounding.
  """

  examples: jax.Array | np.ndarray  # [], how many
  offset_x: jax.Array | np.ndarray  # [p]
  offset_y: jax.Array | np.ndarray  # [q]
  x: jax.Array | np.ndarray  # [p]
  y: jax.Array | np.ndarray  # [q]
  xx: jax.Array | np.ndarray  # [p, p]
  yy: jax.Array | np.ndarray  # [q, q]
  xy: jax.Array | np.ndarray  # [p, q]


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
  """Linear CKA of two representations, in float64.

  It is computed from the examples' products [n, n] or the features' [p, q], whichever is less work.

  Args:
    x: [n, p], not necessarily centred.
    y: [n, q], of the same examples.

  Returns:
    In [0, 1]; NaN where a representation is the same for all examples.

  Raises:
    ValueError: other shapes, or fewer than two examples.
  """
  if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
    raise ValueError(f"representations must be [n, p] and [n, q] of the same n, not {x.shape} and {y.shape}")
  _check_count(len(x))
  x, y = _center(x), _center(y)
  (n, p), q = x.shape, y.shape[1]
  if n * (p + q) < p * p + q * q + p * q:
    of_x, of_y = x @ x.T, y @ y.T
    return _ratio(np.sum(of_x * of_y), of_x, of_y)
  return _ratio(np.sum(np.square(x.T @ y)), x.T @ x, y.T @ y)


def cka_table(learner: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> CkaTable:
  """Linear CKA of all features [n, c] of one network, by their names, with all of another's of the same n images.

  Raises:
    ValueError: as `linear_cka`.
  """
  rows = [[linear_cka(x, y) for y in other.values()] for x in learner.values()]
  known = [[None if np.isnan(value) else value for value in row] for row in rows]
  return CkaTable(list(learner), list(other), known)


def batch_sums(x: jax.Array, y: jax.Array, valid: jax.Array | None = None) -> Sums:
  """The sums of one batch: pure, to be compiled by the caller.

  In float32 at least, whatever the features are in, and with products of full precision, which accelerators do not
  give unasked.

  Args:
    x: one network's features, [b, p] or a map [b, h, w, p].
    y: the other's of the same images, [b, q] or a map [b, h, w, q]; h and w may differ.
    valid: [b], booleans: which examples count, where a batch has been filled up. None for all.

  Raises:
    ValueError: features without two dimensions, or of batches that differ in size.
  """
  x, y = mean_pool(x), mean_pool(y)
  if len(x) != len(y):
    raise ValueError(f"features of {len(x)} and of {len(y)} examples; they must be of the same")
  valid = jnp.ones(len(x), bool) if valid is None else valid
  # The first example is an offset without rounding: a feature that never changes gives sums of exactly zero.
  offset_x, offset_y = x[0], y[0]
  x = jnp.where(valid[:, None], x - offset_x[None, :], 0)
  y = jnp.where(valid[:, None], y - offset_y[None, :], 0)
  products = [jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST) for a, b in ((x, x), (y, y), (x, y))]
  return Sums(jnp.sum(valid), offset_x, offset_y, jnp.sum(x, axis=0), jnp.sum(y, axis=0), *products)


def update(total: Sums, batch: Sums) -> Sums:
  """The sums of both, in float64 on the host, about the offset of `total`; the first total is the first batch.

  Raises:
    ValueError: sums of other features.
  """
  if total.xy.shape != batch.xy.shape:
    raise ValueError(f"sums of features {total.xy.shape} and {batch.xy.shape} do not go together")
  total, batch = _on_host(total), _on_host(batch)
  n, x, y = batch.examples, batch.x, batch.y
  dx, dy = batch.offset_x - total.offset_x, batch.offset_y - total.offset_y
  moved = lambda ab, a, b, da, db: ab + np.outer(a, db) + np.outer(da, b) + n * np.outer(da, db)
  return Sums(
    total.examples + n,
    total.offset_x,
    total.offset_y,
    total.x + x + n * dx,
    total.y + y + n * dy,
    total.xx + moved(batch.xx, x, x, dx, dx),
    total.yy + moved(batch.yy, y, y, dy, dy),
    total.xy + moved(batch.xy, x, y, dx, dy),
  )


def value(total: Sums) -> float:
  """Linear CKA of all the examples in the sums, as `linear_cka`.

  Raises:
    ValueError: fewer than two examples.
  """
  total = _on_host(total)
  _check_count(int(total.examples))
  centred = lambda ab, a, b: ab - np.outer(a, b) / total.examples
  xy = centred(total.xy, total.x, total.y)
  return _ratio(
    np.sum(np.square(xy)), centred(total.xx, total.x, total.x), centred(total.yy, total.y, total.y)
  )


def mean_pool(features: jax.Array) -> jax.Array:
  """Features [b, ..., c] averaged over all positions, [b, c], in float32 at least."""
  if features.ndim < 2:
    raise ValueError(f"features must be [b, d] or [b, h, w, c], not of shape {features.shape}")
  wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  return jnp.mean(wide, axis=tuple(range(1, features.ndim - 1)))


def _center(x: np.ndarray) -> np.ndarray:
  """Less its mean over the examples, in float64; exactly zero where all are equal."""
  x = x.astype(np.float64)
  x = x - x[:1]
  return x - np.mean(x, axis=0, keepdims=True)


def _ratio(squared: np.floating, of_x: np.ndarray, of_y: np.ndarray) -> float:
  norms = np.linalg.norm(of_x) * np.linalg.norm(of_y)
  return float(squared / norms) if norms > 0 else float("nan")


def _on_host(sums: Sums) -> Sums:
  return Sums(*(np.asarray(each, np.float64) for each in sums))


def _check_count(n: int) -> None:
  if n < 2:
    raise ValueError(f"of {n} examples nothing can be said; there must be at least 2")
