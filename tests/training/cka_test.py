"""Tests of training/cka.py, against the definition by Gram matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import cka

batch_sums = jax.jit(cka.batch_sums)


def drawn(n, p, q, seed=0, dtype=np.float64):
  """Two related representations [n, p] and [n, q], not centred, of uneven directions."""
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(n, 3))
  x, y = (common @ rng.normal(size=(3, d)) + rng.normal(size=(n, d)) + rng.normal(size=d) for d in (p, q))
  return x.astype(dtype), y.astype(dtype)


def rotation(d, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def by_definition(x, y):
  """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H) / (n - 1)^2, equations 3 and 4."""
  n = len(x)
  k_x, k_y, h = x @ x.T, y @ y.T, np.eye(n) - 1 / n
  hsic = lambda a, b: np.trace(a @ h @ b @ h) / (n - 1) ** 2
  return hsic(k_x, k_y) / np.sqrt(hsic(k_x, k_x) * hsic(k_y, k_y))


def streamed(x, y, sizes):
  """CKA in batches of the given sizes; the last are filled up to the first with what must not count."""
  total, start = None, 0
  for size in sizes:
    missing = max(sizes) - size
    piece = lambda a, start=start, size=size, missing=missing: np.concatenate(
      [a[start : start + size], np.full((missing, *a.shape[1:]), 7, a.dtype)]
    )
    sums = batch_sums(piece(x), piece(y), np.arange(max(sizes)) < size)
    total = sums if total is None else cka.update(total, sums)
    start += size
  assert start == len(x)
  return cka.value(total)


@pytest.mark.parametrize("shape", [(60, 5, 4), (12, 40, 30), (12, 40, 2), (2, 3, 3)])
def test_both_forms_are_the_definition(shape):
  x, y = drawn(*shape)
  assert cka.linear_cka(x, y) == pytest.approx(by_definition(x, y), rel=1e-9)
  assert cka.linear_cka(y, x) == pytest.approx(by_definition(x, y), rel=1e-9)


@pytest.mark.parametrize("shape", [(100_000, 3, 2), (5, 100_000, 2), (5, 2, 100_000)])
def test_it_needs_no_products_of_what_there_is_much_of(shape):
  """Products of 100,000 with each other would be 80 GB."""
  assert 0 < cka.linear_cka(*drawn(*shape)) < 1


def test_of_single_features_it_is_the_squared_correlation():
  """Centred: (-1, 0, 1) and (-1, -1, 2), so 3^2 / (2 * 6)."""
  x, y = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [0.0], [3.0]])
  assert cka.linear_cka(x, y) == pytest.approx(0.75)
  assert streamed(x, y, [3]) == pytest.approx(0.75)


@pytest.mark.parametrize("shape", [(50, 6, 6), (10, 20, 20)])
def test_what_it_does_not_see_and_what_it_sees(shape):
  x, y = drawn(*shape)
  d = shape[1]
  expected = cka.linear_cka(x, y)
  assert 0 < expected < 0.999
  for same in (x @ rotation(d), -3 * x, x + np.arange(d), x[:, ::-1], np.pad(x, ((0, 0), (0, 2)))):
    assert cka.linear_cka(same, y) == pytest.approx(expected, rel=1e-9)
  order = np.random.default_rng(1).permutation(len(x))
  assert cka.linear_cka(x[order], y[order]) == pytest.approx(expected, rel=1e-9)
  assert abs(cka.linear_cka(x * 10.0 ** np.linspace(-1, 1, d), y) - expected) > 0.01
  assert abs(cka.linear_cka(x[order], y) - expected) > 0.01


def test_the_same_representation_is_one():
  x, _ = drawn(40, 6, 6)
  assert cka.linear_cka(x, x) == pytest.approx(1, abs=1e-12)
  assert cka.linear_cka(x, 2 * x @ rotation(6) + 1) == pytest.approx(1, abs=1e-12)
  assert streamed(x, x, [15, 15, 10]) == pytest.approx(1, abs=1e-6)


def test_independent_ones_are_near_zero_where_examples_are_many():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(4000, 10)), rng.normal(size=(4000, 20))
  assert 0 <= cka.linear_cka(x, y) < 0.01  # sqrt(p q) / n = 0.004 is expected
  assert cka.linear_cka(x[:10], y[:10]) > 0.3


@pytest.mark.parametrize("sizes", [[90], [30, 30, 30], [40, 40, 10], [89, 1], [1] * 90])
def test_in_batches_it_is_that_of_all_at_once(sizes):
  x, y = drawn(90, 8, 5, dtype=np.float32)
  expected = cka.linear_cka(x, y)
  assert streamed(x, y, sizes) == pytest.approx(expected, rel=1e-5)


def test_batches_of_different_means_are_put_together_exactly():
  """As of a set that is sorted by class."""
  x, y = drawn(90, 8, 5, dtype=np.float32)
  x[:30] += 50
  y[30:60] -= 20
  assert streamed(x, y, [30, 30, 30]) == pytest.approx(cka.linear_cka(x, y), rel=1e-5)


@pytest.mark.parametrize("shift", [1e3, 1e5])
def test_large_offsets_do_no_harm(shift):
  """Not even where float32 keeps two digits of the spread: the same numbers in float64 give the same."""
  x, y = drawn(200, 8, 5)
  x, y = (x + shift).astype(np.float32), (y - shift * np.arange(5)).astype(np.float32)
  assert streamed(x, y, [64, 64, 64, 8]) == pytest.approx(cka.linear_cka(x, y), rel=1e-5)
  uncentred = cka.Sums(len(x), np.zeros(8), np.zeros(5), x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)
  assert abs(cka.value(uncentred) - cka.linear_cka(x, y)) > 1e-2  # plain sums in float32


def test_maps_are_averaged_over_positions():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(20, 4, 4, 6)).astype(np.float32), rng.normal(size=(20, 2, 2, 3)).astype(np.float32)
  expected = cka.linear_cka(x.mean((1, 2)), y.mean((1, 2)))
  assert streamed(x, y, [10, 10]) == pytest.approx(expected, rel=1e-4)
  assert batch_sums(x, y.mean((1, 2))).xy.shape == (6, 3)


def test_half_precision_is_summed_in_float32():
  x, y = drawn(64, 8, 5)
  x, y = jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)
  sums = batch_sums(x, y)
  assert {leaf.dtype for leaf in sums[1:]} == {jnp.dtype("float32")}
  expected = cka.linear_cka(np.asarray(x, np.float64), np.asarray(y, np.float64))
  assert cka.value(sums) == pytest.approx(expected, rel=1e-5)


def test_shards_of_a_batch_are_batches_even_those_without_an_example():
  """Four devices with four examples each, of which the last has none to count."""
  x, y = drawn(12, 3, 2, dtype=np.float32)
  shards = [np.pad(a, ((0, 4), (0, 0)), constant_values=9).reshape(4, 4, -1) for a in (x, y)]
  sums = jax.vmap(cka.batch_sums)(*shards, (np.arange(16) < 12).reshape(4, 4))
  total = functools.reduce(cka.update, (jax.tree.map(lambda leaf, i=i: leaf[i], sums) for i in range(4)))
  assert total.examples == 12
  assert cka.value(total) == pytest.approx(cka.linear_cka(x, y), rel=1e-5)


def test_the_order_of_batches_and_their_grouping_say_nothing():
  x, y = drawn(90, 8, 5, dtype=np.float32)
  a, b, c = (batch_sums(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60))
  one = cka.value(cka.update(cka.update(a, b), c))
  other = cka.value(cka.update(c, cka.update(b, a)))
  assert one == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("shape", [(60, 5, 4), (12, 40, 30)])
def test_a_representation_that_never_changes_has_no_similarity(shape):
  x, y = drawn(*shape, dtype=np.float32)
  constant = np.full(x.shape, 0.1)  # whose mean is, rounded, another number
  assert np.isnan(cka.linear_cka(constant, y))
  assert np.isnan(cka.linear_cka(y, constant))
  assert np.isnan(streamed(constant, y, [shape[0] // 2] * 2))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4, 3)), ((4, 2, 2, 3), (4, 3))])
def test_other_shapes_are_refused(shapes):
  with pytest.raises(ValueError, match="must be"):
    cka.linear_cka(*map(np.ones, shapes))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4, 3))])
def test_features_of_other_shapes_are_refused(shapes):
  with pytest.raises(ValueError, match="must be"):
    batch_sums(*map(np.ones, shapes))


def test_sums_of_other_features_are_refused():
  with pytest.raises(ValueError, match="do not go together"):
    cka.update(batch_sums(*drawn(4, 3, 2)), batch_sums(*drawn(4, 1, 2)))


def test_a_single_example_is_refused():
  x, y = drawn(1, 3, 2)
  with pytest.raises(ValueError, match="at least 2"):
    cka.linear_cka(x, y)
  with pytest.raises(ValueError, match="at least 2"):
    cka.value(batch_sums(x, y))
