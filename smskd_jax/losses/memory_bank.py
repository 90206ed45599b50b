"""Memory banks, [n, d], of one embedding a training example, and draws by class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# `similarities` multiplies by the whole bank if the bank has at most this multiple of the rows asked for. That is
# faster than to gather rows, but takes memory for all products: 128 MiB a direction for 8 x 16384 rows and a batch of
# 256.
MAX_DENSE_RATIO = 8


class ClassIndex(NamedTuple):
  """The training set sorted by class, in which each class is a range."""

  labels: jax.Array  # [n], int32, ascending
  indices: jax.Array  # [n], int32, position in the training set of each


def make_class_index(labels: jax.Array) -> ClassIndex:
  """Sorts the training set with these labels, [n], by class."""
  labels = jnp.asarray(labels, jnp.int32)
  example = jnp.argsort(labels, stable=True).astype(jnp.int32)
  return ClassIndex(labels[example], example)


def _class_ranges(classes: ClassIndex, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Start and number of examples of the classes of `label`, [b]: [b, 1] each."""
  start, end = (jnp.searchsorted(classes.labels, label, side=side) for side in ("left", "right"))
  return start.astype(jnp.int32)[:, None], (end - start).astype(jnp.int32)[:, None]


def _random_below(bits: jax.Array, bound: jax.Array) -> jax.Array:
  """Random 32-bit words as integers from 0 to bound - 1 (0 if there is none)."""
  return (bits % jnp.maximum(bound, 1).astype(jnp.uint32)).astype(jnp.int32)


def random_bits(key: jax.Array, index: jax.Array, count: int) -> jax.Array:
  """Random 32-bit words for each example, independent of its position in the batch.

  Args:
    key: random key.
    index: [b], position in the training set.
    count: number of words.

  Returns:
    [b, count], uint32.
  """

  def words(i):
    return jax.random.bits(jax.random.fold_in(key, i), (count,), jnp.uint32)

  return jax.vmap(words)(index)


def sample_negatives(classes: ClassIndex, label: jax.Array, bits: jax.Array) -> jax.Array:
  """Examples of other classes than `label`, uniformly and with replacement.

  A draw is a position among the sorted examples without those of the class itself, so that nothing is rejected: a
  random word modulo their number, which changes each probability by at most its n / 2^32-th part.

  Args:
    classes: of the training set.
    label: [b].
    bits: [b, m], random, from `random_words`.

  Returns:
    [b, m], int32, positions in the training set.
  """
  start, count = _class_ranges(classes, label)
  place = _random_below(bits, classes.labels.size - count)
  return classes.indices[jnp.where(place < start, place, place + count)]


def sample_positives(classes: ClassIndex, label: jax.Array, bits: jax.Array) -> jax.Array:
  """Examples of the class `label`, uniformly and with replacement; as `sample_negatives`."""
  start, count = _class_ranges(classes, label)
  return classes.indices[start + _random_below(bits, count)]


def similarities(embedding: jax.Array, bank: jax.Array, index: jax.Array) -> jax.Array:
  """Inner products of each embedding with the rows of the bank that are listed for it.

  The rows themselves, b x m x d, are never in memory at once. Where the bank has at most 8 m rows, all of its inner
  products are computed as one matrix product, b x n, and the listed ones are looked up. For a larger bank, the rows
  of 8 examples at a time are gathered, and gathered again for the gradient.

  Args:
    embedding: [b, d].
    bank: [n, d]; a constant, no gradient reaches it.
    index: [b, m], rows of the bank.

  Returns:
    [b, m].
  """
  bank = jax.lax.stop_gradient(bank)
  if bank.shape[0] <= MAX_DENSE_RATIO * index.shape[1]:
    every = jnp.einsum("bd,nd->bn", embedding, bank, precision="highest")
    return jnp.take_along_axis(every, index, axis=1)

  @jax.checkpoint
  def row_similarities(example):
    anchor, rows = example
    return jnp.einsum("d,md->m", anchor, bank[rows], precision="highest")

  return jax.lax.map(row_similarities, (embedding, index), batch_size=8)
