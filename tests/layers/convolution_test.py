"""Tests of layers/convolution.py: layers compute the convolution on CPUs, and XLA's elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax import models
from smskd_jax.layers import basic, convolution
from smskd_jax.layers.cpu import primitives
from smskd_jax.models import introspection


def traced(layer, x, kernel):
  """Text of the forward program before it is lowered."""
  return str(jax.make_jaxpr(lambda x, k: layer.apply({"params": {"kernel": k}}, x))(x, kernel))


def example(i, o, groups=1, dtype=np.float32, size=3):
  rng = np.random.default_rng(0)
  shapes = ((2, 4, 4, i), (size, size, i // groups, o))
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


@pytest.mark.parametrize(("i", "o", "stride"), [(128, 128, 1), (3, 5, 1), (4, 8, 2)])
def test_layers_compute_the_convolution(i, o, stride, float64):
  layer = basic.conv(o, 3, stride=stride)
  x, kernel = example(i, o, dtype=np.float64)

  def both(x, kernel):
    y, pull_back = jax.vjp(lambda x, k: layer.apply({"params": {"kernel": k}}, x), x, kernel)
    return y, *pull_back(jnp.cos(y))

  assert primitives._forward.name in traced(layer, x, kernel)
  with convolution.use_xla_convolution():
    assert primitives._forward.name not in traced(basic.conv(o, 3, stride=stride), x, kernel)
    expected = jax.jit(lambda *a: both(*a))(x, kernel)
  for a, b in zip(jax.jit(both)(x, kernel), expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_other_convolutions_are_xlas():
  assert primitives._forward.name not in traced(basic.conv(4, 3, groups=2), *example(4, 4, 2))
  assert primitives._forward.name not in traced(basic.conv(4, 3), *example(4, 4, dtype=jnp.bfloat16))
  assert "dot_general" in traced(basic.conv(4, 1), *example(4, 4, size=1))


def test_other_platforms_get_the_convolution_itself():
  x, kernel = example(128, 128)
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
  monkeypatch.setattr(primitives, "convolve", lambda x, kernel, conv: x * 0)
  assert found == count() > 1e7
