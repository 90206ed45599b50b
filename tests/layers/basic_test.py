"""Tests of layers/basic.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.layers import basic


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 1, 1, 3), (2, 6, 7, 3)])
def test_convolutions_are_xlas(size, stride, shape, float64):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=shape), rng.normal(size=(size, size, 3, 6))
  layer = basic.conv(6, size, stride=stride)
  found = layer.apply({"params": {"kernel": jnp.asarray(kernel)}}, x)
  pad = (size // 2, size // 2)
  expected = jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def products(layer, shape):
  """The names of the operations that a layer computes with."""
  variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape))
  jaxpr = jax.make_jaxpr(layer.apply)(variables, jnp.zeros(shape))
  return {equation.primitive.name for equation in jaxpr.eqns} & {"dot_general", "cpu_convolution_forward"}


def test_only_what_is_pointwise_is_a_matrix_product():
  assert products(basic.conv(6, 1, stride=2), (2, 4, 4, 3)) == {"dot_general"}
  assert products(basic.conv(6, 3), (2, 4, 4, 3)) == {"cpu_convolution_forward"}
