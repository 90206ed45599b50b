"""Tests of layers/convolution.py and layers/winograd.py: the forms that a CPU gets are the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax import models
from smskd_jax.layers import basic, convolution, winograd
from smskd_jax.models import introspection


def plain(x, kernel, stride=1):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def example(b, h, w, i, o, stride=1):
  rng = np.random.default_rng(0)
  shapes = ((b, h, w, i), (3, 3, i, o), (b, -(-h // stride), -(-w // stride), o))
  return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3, 5), (1, 2, 2, 4, 2)])
def test_winograds_filtering_is_the_convolution(shape, float64):
  x, kernel, gradient = example(*shape)
  y, pull_back = jax.vjp(plain, x, kernel)
  x_gradient, kernel_gradient = pull_back(gradient)
  close = {"rtol": 1e-11, "atol": 1e-11}
  np.testing.assert_allclose(winograd.convolve(x, kernel), y, **close)
  np.testing.assert_allclose(winograd.input_gradient(gradient, kernel), x_gradient, **close)
  np.testing.assert_allclose(winograd.kernel_gradient(x, gradient), kernel_gradient, **close)


def test_winograds_filtering_rounds_as_the_convolution_does():
  x, kernel, gradient = (np.asarray(a, np.float32) for a in example(8, 8, 8, 128, 128))
  with jax.enable_x64(True):
    exact = np.asarray(plain(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64)))

  def error(y):
    return np.sqrt(np.mean((np.asarray(y) - exact) ** 2))

  assert error(winograd.convolve(x, kernel)) < 3 * error(plain(x, kernel))


@pytest.mark.parametrize(
  ("shape", "stride", "primitives"),
  [
    ((2, 4, 4, 128, 128), 1, {"dot_general"}),  # filtered
    ((4, 40, 40, 32, 64), 1, {"conv_general_dilated"}),  # in pieces of two images
    ((4, 80, 80, 32, 64), 2, {"conv_general_dilated"}),  # in pieces of an image
    ((3, 5, 5, 128, 128), 1, {"conv_general_dilated"}),  # odd, and small
  ],
)
def test_what_a_cpu_computes_is_what_is_written(shape, stride, primitives, float64):
  *_, i, o = shape
  layer = basic.conv(o, 3, stride=stride)
  x, kernel, gradient = example(*shape, stride)

  def both(x, kernel):
    y, pull_back = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
    return y, *pull_back(gradient)

  found = jax.jit(both)(x, kernel)
  with convolution.use_xla_convolution():
    expected = jax.jit(lambda *a: both(*a))(x, kernel)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
  lowered = jax.jit(lambda x, k: layer.apply({"params": {"kernel": k}}, x)).lower(x, kernel).as_text()
  assert ("stablehlo.convolution" in lowered) == (primitives == {"conv_general_dilated"})


def test_gradients_come_in_pieces_of_few_positions():
  assert convolution._num_chunks(jnp.zeros((8, 32, 32, 1))) == 2
  assert convolution._num_chunks(jnp.zeros((6, 32, 32, 1))) == 2
  assert convolution._num_chunks(jnp.zeros((5, 32, 32, 1))) == 5
  assert convolution._num_chunks(jnp.zeros((64, 8, 8, 1))) == 1
  assert convolution._num_chunks(jnp.zeros((2, 100, 100, 1))) == 2


def test_other_platforms_get_the_convolution_itself():
  x, kernel, _ = example(2, 4, 4, 128, 128)
  layer = basic.conv(128, 3)
  forward = jax.jit(lambda x, k: layer.apply({"params": {"kernel": k}}, x))

  def text(platform):
    return jax.export.export(forward, platforms=[platform])(x, kernel).mlir_module()

  assert "stablehlo.convolution" in text("cuda") and "stablehlo.dot_general" not in text("cuda")
  assert "stablehlo.dot_general" in text("cpu") and "stablehlo.convolution" not in text("cpu")


def test_operations_are_counted_as_written(monkeypatch):
  def count():
    return introspection.forward_flops.__wrapped__(models.factory("resnet8x4")(num_classes=10), (32, 32, 3))

  found = count()
  monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 10_000)
  assert found == count()
