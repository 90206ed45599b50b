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
    assert numerics.widen(jnp.zeros(2, dtype)).dtype == expected
  if dtype != "float64":
    assert numerics.widen(jnp.zeros(2, dtype)).dtype == expected


def test_norm_and_its_gradient():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]])
  np.testing.assert_allclose(numerics.norm(x), [5, 0, 0])
  gradient = jax.grad(lambda x: numerics.norm(x).sum())(x)
  np.testing.assert_allclose(gradient, [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)


def test_divide_and_its_gradient():
  by = jnp.array([2.0, 0.0])
  np.testing.assert_allclose(numerics.divide(jnp.ones(2), by), [0.5, 0])
  gradients = jax.grad(lambda x, by: numerics.divide(x, by).sum(), argnums=(0, 1))(jnp.ones(2), by)
  np.testing.assert_allclose(gradients, [[0.5, 0], [-0.25, 0]])


def test_huber():
  np.testing.assert_allclose(
    numerics.huber(jnp.array([-3.0, -1.0, 0.0, 0.5, 2.0])), [2.5, 0.5, 0, 0.125, 1.5]
  )
