"""Tests of training/cka.py, against the definition by Gram matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import cka


def representations(n, p, q, seed=0, dtype=np.float64):
  """Two related representations [n, p] and [n, q], not centered, with uneven variances."""
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(n, 3))
  x, y = (common @ rng.normal(size=(3, d)) + rng.normal(size=(n, d)) + rng.normal(size=d) for d in (p, q))
  return x.astype(dtype), y.astype(dtype)


def rotation(d, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def by_definition(x, y):
  """Equations 3 and 4: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).

  HSIC(K, L) = tr(K H L H) / (n - 1)^2.
  """
  n = len(x)
  k_x, k_y, h = x @ x.T, y @ y.T, np.eye(n) - 1 / n

  def hsic(a, b):
    return np.trace(a @ h @ b @ h) / (n - 1) ** 2

  return hsic(k_x, k_y) / np.sqrt(hsic(k_x, k_x) * hsic(k_y, k_y))


@pytest.mark.parametrize("shape", [(60, 5, 4), (12, 40, 30), (12, 40, 2), (2, 3, 3)])
def test_both_forms_equal_the_definition(shape):
  x, y = representations(*shape)
  assert cka.linear_cka(x, y) == pytest.approx(by_definition(x, y), rel=1e-9)
  assert cka.linear_cka(y, x) == pytest.approx(by_definition(x, y), rel=1e-9)


@pytest.mark.parametrize("shape", [(100_000, 3, 2), (5, 100_000, 2), (5, 2, 100_000)])
def test_large_dimensions_need_no_products_of_their_size(shape):
  """A matrix [100000, 100000] would take 80 GB."""
  assert 0 < cka.linear_cka(*representations(*shape)) < 1


def test_cka_of_single_features_is_the_squared_correlation():
  """Centered: (-1, 0, 1) and (-1, -1, 2), so 3^2 / (2 * 6)."""
  x, y = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [0.0], [3.0]])
  assert cka.linear_cka(x, y) == pytest.approx(0.75)


@pytest.mark.parametrize("shape", [(50, 6, 6), (10, 20, 20)])
def test_invariances_and_what_changes_cka(shape):
  x, y = representations(*shape)
  d = shape[1]
  expected = cka.linear_cka(x, y)
  assert 0 < expected < 0.999
  for same in (x @ rotation(d), -3 * x, x + np.arange(d), x[:, ::-1], np.pad(x, ((0, 0), (0, 2)))):
    assert cka.linear_cka(same, y) == pytest.approx(expected, rel=1e-9)
  order = np.random.default_rng(1).permutation(len(x))
  assert cka.linear_cka(x[order], y[order]) == pytest.approx(expected, rel=1e-9)
  assert abs(cka.linear_cka(x * 10.0 ** np.linspace(-1, 1, d), y) - expected) > 0.01
  assert abs(cka.linear_cka(x[order], y) - expected) > 0.01


def test_cka_of_equal_representations_is_one():
  x, _ = representations(40, 6, 6)
  assert cka.linear_cka(x, x) == pytest.approx(1, abs=1e-12)
  assert cka.linear_cka(x, 2 * x @ rotation(6) + 1) == pytest.approx(1, abs=1e-12)


def test_independent_representations_of_many_examples_are_near_zero():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(4000, 10)), rng.normal(size=(4000, 20))
  assert 0 <= cka.linear_cka(x, y) < 0.01  # sqrt(p q) / n = 0.004 is expected
  assert cka.linear_cka(x[:10], y[:10]) > 0.3


@pytest.mark.parametrize("shape", [(60, 5, 4), (12, 40, 30)])
def test_a_constant_representation_has_no_cka(shape):
  x, y = representations(*shape, dtype=np.float32)
  constant = np.full(x.shape, 0.1)  # whose mean is, rounded, another number
  assert np.isnan(cka.linear_cka(constant, y))
  assert np.isnan(cka.linear_cka(y, constant))


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4, 3)), ((4, 2, 2, 3), (4, 3))])
def test_other_shapes_are_refused(shapes):
  with pytest.raises(ValueError, match="must be"):
    cka.linear_cka(*map(np.ones, shapes))


@pytest.mark.parametrize("shape", [(20, 4, 4, 6), (20, 6)])
def test_maps_are_averaged_over_positions(shape):
  features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  expected = features.mean((1, 2)) if len(shape) == 4 else features
  np.testing.assert_allclose(cka.mean_pool(jnp.asarray(features)), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_averaged_in_float32():
  assert cka.mean_pool(jnp.ones((2, 3, 3, 4), jnp.bfloat16)).dtype == jnp.float32


def test_features_without_channels_are_refused():
  with pytest.raises(ValueError, match="must be"):
    cka.mean_pool(jnp.ones(4))


def test_a_single_example_is_refused():
  with pytest.raises(ValueError, match="at least 2"):
    cka.linear_cka(*representations(1, 3, 2))


def test_a_table_has_a_row_for_each_feature_and_none_where_cka_is_undefined():
  x, y = representations(30, 5, 4)
  table = cka.cka_table({"a": x, "constant": np.ones((30, 2))}, {"a": x, "b": y})
  assert (table.student, table.other) == (["a", "constant"], ["a", "b"])
  assert table.cka == [[cka.linear_cka(x, x), cka.linear_cka(x, y)], [None, None]]
