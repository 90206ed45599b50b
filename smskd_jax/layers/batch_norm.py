"""Batch normalisation with its gradient written out.

Ioffe, Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015, https://arxiv.org/abs/1502.03167

`flax.linen.BatchNorm` computes the same; differentiated automatically it keeps the centred activations of every
layer and passes over them more often than it has to. Written out, the forward pass reads the activations twice and the
backward pass twice, which on a CPU is worth a fifth of a ResNet's whole step (`benchmarks/batch_norm.py`).
Its variables have Flax's names, so that either reads the other's variables.
"""

import functools
from typing import Any, cast

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Normalises the last axis by statistics of the batch, or by running ones.

  The running variance is of the biased variance, as Flax's; PyTorch keeps the unbiased one.
  """

  train: bool
  axis_name: str | None = None  # the axis of devices that the statistics of the batch span
  momentum: float = 0.9  # how much of the running statistics a step keeps
  epsilon: float = 1e-5
  # of the result; None: the common type of input and parameters. Statistics are never narrower
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """The normalised activations [..., c]."""
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
    x = x.astype(self.dtype or jnp.promote_types(x.dtype, scale.dtype))
    if not self.train:
      slope = scale * lax.rsqrt(running_var.value + self.epsilon)
      return _scale(x, slope, bias - running_mean.value * slope).astype(x.dtype)
    y, mean, var = batch_norm(x, scale, bias, self.epsilon, self.axis_name)
    if not self.is_initializing():
      running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
      running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(normalised x, mean, biased variance) over all axes but the last and over devices.

  The first is of x's type; sums are computed in the wider of the types of scale and x.
  Mean and variance are there to be remembered: no gradient flows through them.
  """
  return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
  axes = tuple(range(x.ndim - 1))
  wide = x.astype(jnp.promote_types(x.dtype, scale.dtype))
  moments = _mean(jnp.stack([jnp.mean(wide, axes), jnp.mean(wide * wide, axes)]), axis_name)
  mean = moments[0]
  var = jnp.maximum(moments[1] - mean * mean, 0)  # rounding can take it below zero
  inverse_std = lax.rsqrt(var + epsilon)
  slope = scale * inverse_std
  y = _scale(wide, slope, bias - mean * slope).astype(x.dtype)
  return (y, mean, var), (x, scale, mean, inverse_std)


def _backward(epsilon, axis_name, residuals, cotangents):
  """Gradients of x, scale and bias from two means over the batch of y's gradient."""
  del epsilon
  x, scale, mean, inverse_std = residuals
  narrow, wide = x.dtype, jnp.promote_types(x.dtype, scale.dtype)
  x, gradient = x.astype(wide), cotangents[0].astype(wide)
  axes = tuple(range(x.ndim - 1))
  # Local means give the gradients of scale and bias, means over all devices that of x.
  own = jnp.stack([jnp.mean(gradient, axes), jnp.mean(gradient * (x - _per_channel(mean, x)), axes)])
  everyone = _mean(own, axis_name)
  slope = scale * inverse_std
  curve = slope * inverse_std**2 * everyone[1]
  # x is not centred again: two uses of one centred array would keep it in memory, which costs more than it saves.
  x_gradient = _scale(gradient, slope, curve * mean - slope * everyone[0]) - x * _per_channel(curve, x)
  count = x.size // x.shape[-1]
  return x_gradient.astype(narrow), count * own[1] * inverse_std, count * own[0]


batch_norm.defvjp(_forward, _backward)


def _scale(x, slope, shift):
  return x * _per_channel(slope, x) + _per_channel(shift, x)


def _per_channel(vector: jax.Array, x: jax.Array) -> jax.Array:
  return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
  return x if axis_name is None else cast(jax.Array, lax.pmean(x, axis_name))
