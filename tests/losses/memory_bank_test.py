"""Tests of losses/memory_bank.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import memory_bank

LABELS = np.repeat([2, 0, 1, 7], [5, 30, 11, 4])[np.random.default_rng(0).permutation(50)].astype(np.int32)
DRAWS = {"other": memory_bank.sample_negatives, "same": memory_bank.sample_positives}


@functools.partial(jax.jit, static_argnums=(0, 2))
def _drawn(who, index, count, key):
  words = memory_bank.random_bits(jax.random.key(key), index, count)
  return DRAWS[who](memory_bank.make_class_index(LABELS), jnp.asarray(LABELS)[index], words)


def drawn(who, index, count, key=0):
  return np.asarray(_drawn(who, index, count, key))


@pytest.mark.parametrize("who", DRAWS)
def test_draws_are_uniform_over_the_right_classes(who):
  index = np.array([np.flatnonzero(label == LABELS)[-1] for label in (0, 1, 2, 7)])
  for i, row in zip(index, drawn(who, index, 20000), strict=True):
    allowed = (LABELS[i] == LABELS) == (who == "same")
    counts = np.bincount(row, minlength=50)
    assert not counts[~allowed].any()
    expected = 20000 / allowed.sum()
    freedom = allowed.sum() - 1
    # Chi-square; its mean is the degrees of freedom, its variance twice that.
    assert np.sum((counts[allowed] - expected) ** 2) / expected < freedom + 4 * np.sqrt(2 * freedom)


def test_draws_belong_to_the_example_and_the_key():
  index = np.array([3, 41, 7, 20])
  rows = drawn("other", index, 6)
  order = [2, 0, 3, 1]
  np.testing.assert_array_equal(drawn("other", index[order], 6), rows[order])
  np.testing.assert_array_equal(drawn("other", index[1:2], 6), rows[1:2])
  assert (drawn("other", index, 6, key=1) != rows).any(axis=1).all()
  alike = np.flatnonzero(LABELS == 0)[:2]
  assert len(set(map(tuple, drawn("other", alike, 6)))) == 2


def test_draws_worked_by_hand():
  # Sorted: examples 1, 3 of class 0, examples 0, 2, 4 of class 1, example 5 of class 2.
  classes = jax.jit(memory_bank.make_class_index)(np.array([1, 0, 1, 0, 1, 2]))
  words = np.tile(np.arange(7, dtype=np.uint32), (3, 1))
  label = np.array([0, 1, 2])
  others = [[0, 2, 4, 5, 0, 2, 4], [1, 3, 5, 1, 3, 5, 1], [1, 3, 0, 2, 4, 1, 3]]
  same = [[1, 3, 1, 3, 1, 3, 1], [0, 2, 4, 0, 2, 4, 0], [5] * 7]
  np.testing.assert_array_equal(jax.jit(memory_bank.sample_negatives)(classes, label, words), others)
  np.testing.assert_array_equal(jax.jit(memory_bank.sample_positives)(classes, label, words), same)


@pytest.mark.parametrize("n", [8 * 6, 8 * 6 + 1])
@pytest.mark.parametrize("b", [1, 8, 11])
@pytest.mark.usefixtures("float64")
def test_scores_and_their_gradient_on_both_sides_of_the_switch(n, b):
  rng = np.random.default_rng(0)
  embedding, bank, weight = rng.normal(size=(b, 3)), rng.normal(size=(n, 3)), rng.normal(size=(b, 6))
  index = rng.integers(0, n, (b, 6))

  def weighted(embedding, bank):
    scores = memory_bank.similarities(embedding, bank, index)
    return (weight * scores).sum(), scores

  (_, scores), gradients = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(
    embedding, bank
  )
  np.testing.assert_allclose(scores, np.einsum("bd,bmd->bm", embedding, bank[index]))
  np.testing.assert_allclose(gradients[0], np.einsum("bm,bmd->bd", weight, bank[index]))
  assert not gradients[1].any()


def test_a_large_bank_is_gathered_little_by_little():
  shapes = [((256, 128), jnp.float32), ((1_281_167, 128), jnp.float32), ((256, 16385), jnp.int32)]
  gradient = jax.grad(lambda *x: jnp.square(memory_bank.similarities(*x)).sum())
  compiled = jax.jit(gradient).lower(*(jax.ShapeDtypeStruct(*x) for x in shapes)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2**28
