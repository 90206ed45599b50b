"""Tests of layers/cpu/winograd.py: Winograd's form equals the convolution, and rounds as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.layers.cpu import winograd


def plain(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def example(b, h, w, i, o):
  rng = np.random.default_rng(0)
  return tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((b, h, w, i), (3, 3, i, o), (b, h, w, o)))


@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 2, 2, 4, 2)])
def test_winograds_form_is_the_convolution(shape, float64):
  x, kernel, gradient = example(*shape)
  y, pull_back = jax.vjp(plain, x, kernel)
  x_gradient, kernel_gradient = pull_back(gradient)
  close = {"rtol": 1e-11, "atol": 1e-11}
  np.testing.assert_allclose(winograd.convolve(x, kernel), y, **close)
  np.testing.assert_allclose(winograd.input_gradient(gradient, kernel), x_gradient, **close)
  np.testing.assert_allclose(winograd.kernel_gradient(x, gradient), kernel_gradient, **close)


def test_winograds_form_rounds_as_the_convolution_does():
  x, kernel, _ = (np.asarray(a, np.float32) for a in example(8, 8, 8, 128, 128))
  with jax.enable_x64(True):
    exact = np.asarray(plain(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64)))

  def error(y):
    return np.sqrt(np.mean((np.asarray(y) - exact) ** 2))

  assert error(winograd.convolve(x, kernel)) < 3 * error(plain(x, kernel))
