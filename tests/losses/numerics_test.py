"""Tests of losses/numerics.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import numerics


@pytest.mark.parametrize(
  "dtype, expected",
  [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_widen(dtype, expected):
  with jax.enable_x64(True):
    assert numerics.upcast(jnp.zeros(2, dtype)).dtype == expected
  if dtype != "float64":
    assert numerics.upcast(jnp.zeros(2, dtype)).dtype == expected


def test_norm_and_its_gradient():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
  np.testing.assert_allclose(numerics.safe_norm(x), [5, 0, 0])
  gradient = jax.grad(lambda x: numerics.safe_norm(x).sum())(x)
  np.testing.assert_allclose(gradient, [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)


def test_divide_and_its_gradient():
  by = jnp.array([2.0, 0.0])
  np.testing.assert_allclose(numerics.safe_divide(jnp.ones(2), by), [0.5, 0])
  gradients = jax.grad(lambda x, by: numerics.safe_divide(x, by).sum(), argnums=(0, 1))(jnp.ones(2), by)
  np.testing.assert_allclose(gradients, [[0.5, 0], [-0.25, 0]])


def test_huber():
  np.testing.assert_allclose(
    numerics.huber(jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0])), [2.5, 0.5, 0, 0.125, 1.5]
  )


def test_kl_divergence():
  p, q = np.array([[0.75, 0.25]]), np.array([[0.5, 0.5]])
  np.testing.assert_allclose(
    numerics.kl_divergence(np.log(p), np.log(q)), [0.75 * np.log(1.5) + 0.25 * np.log(0.5)], rtol=1e-6
  )


def test_of_label():
  np.testing.assert_array_equal(
    numerics.gather_label(jnp.arange(6).reshape(2, 3), jnp.array([2, 0])), jnp.array([2, 3])
  )


def test_log_softmax_of_others_leaves_the_label_out():
  logits, labels = jnp.array([[1.0, 2.0, 3.0], [1e4, -1e4, 0.0]]), jnp.array([1, 0])
  others = numerics.log_softmax_without_label(logits, labels)
  np.testing.assert_allclose(others[0], [-np.log1p(np.exp(2)), 0, -np.log1p(np.exp(-2))], rtol=1e-6)
  np.testing.assert_allclose(others[1], [0, -1e4, 0])
  gradient = jax.grad(lambda z: numerics.log_softmax_without_label(z, labels).sum())(logits)
  assert np.isfinite(gradient).all() and (gradient[jnp.arange(2), labels] == 0).all()


def test_rescale_changes_only_the_scale():
  x = jnp.array([[1e-30, 2e-30], [3e30, -6e30], [0.0, 0.0]])
  np.testing.assert_allclose(numerics.normalize_scale(x), [[0.5, 1], [0.5, -1], [0, 0]], rtol=1e-6)


def test_log_softmax_within_a_mask():
  logits = jnp.array([[1.0, 2.0, 3.0], [1e4, -1e4, 0.0], [1.0, 2.0, 3.0]])
  mask = jnp.array([[True, False, True], [False, True, False], [False, False, False]])
  within = numerics.log_softmax_within(logits, mask)
  np.testing.assert_allclose(within[0], [-np.log1p(np.exp(2)), 0, -np.log1p(np.exp(-2))], rtol=1e-6)
  assert (within[1:] == 0).all()
  gradient = jax.grad(lambda z: numerics.log_softmax_within(z, mask)[:, 0].sum())(logits)
  assert (gradient[0] != 0).tolist() == [True, False, True] and (gradient[1:] == 0).all()


def test_log_split():
  logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [4.0, 2.0, 2.0]]))
  mask = numerics.class_mask(jnp.array([[0, 1], [2, 0]]), 3)
  np.testing.assert_array_equal(mask, [[True, True, False], [True, False, True]])
  np.testing.assert_allclose(
    numerics.log_split(logits, mask), np.log([[3 / 8, 5 / 8], [3 / 4, 1 / 4]]), rtol=1e-6
  )
