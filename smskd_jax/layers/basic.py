"""Layers of networks and of trained parts of methods, with PyTorch's conventions.

A submodule of a network is named like its PyTorch counterpart, with `_` for the dots inside the name (`layer1_0` for
`layer1.0`) and `__` for an underscore: `models/torch_weights.py` relies on it.
"""

import math
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax.layers.batch_norm import BatchNorm
from smskd_jax.layers.convolution import convolve


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """He initialisation: normal weights [h, w, in, out] of variance 2 / fan-out.

  Drawn flat, because on a CPU XLA takes seconds to compile a draw of four dimensions, for each shape.
  """
  height, width, _, outputs = shape
  scale = math.sqrt(2.0 / (height * width * outputs))
  return scale * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def normal(scale: float) -> Any:
  """Normal weights of a given standard deviation. Drawn flat, as `he_normal`."""

  def init(key, shape, dtype):
    return scale * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

  return init


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Uniform weights [..., in, out] between -+1/sqrt(fan-in), PyTorch's default."""
  bound = 1.0 / math.sqrt(math.prod(shape[:-1]))
  return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def conv(
  channels: int,
  kernel_size: int,
  *,
  stride: int = 1,
  groups: int = 1,
  use_bias: bool = False,
  kernel_init: Any = he_normal,
  dtype: Any = None,
  name: str | None = None,
) -> nn.Conv:
  """A square convolution padded by half its size.

  The padding is written out because with stride 2 "SAME" pads an even map on one side, PyTorch on both.
  """
  pad = (kernel_size // 2, kernel_size // 2)
  return nn.Conv(
    channels,
    (kernel_size, kernel_size),
    strides=stride,
    padding=(pad, pad),
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=kernel_init,
    dtype=dtype,
    conv_general_dilated=convolve,
    name=name,
  )


def norm(*, train: bool, axis_name: str | None, dtype: Any = None, name: str | None = None) -> BatchNorm:
  """Batch normalisation; in training its statistics span the devices of `axis_name`."""
  return BatchNorm(train=train, axis_name=axis_name, dtype=dtype, name=name)


def linear(features: int, in_features: int, *, kernel_init: Any = None, name: str | None = None) -> nn.Dense:
  """Linear layer; weights and biases start between -+1/sqrt(in_features), as PyTorch's.

  With `kernel_init`, biases start at zero.
  """
  if kernel_init is not None:
    return nn.Dense(features, kernel_init=kernel_init, name=name)
  bound = 1.0 / math.sqrt(in_features)

  def bias(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(features, kernel_init=uniform, bias_init=bias, name=name)


def shuffle_channels(x: jax.Array, groups: int) -> jax.Array:
  """Channel shuffle: interleaves the channels of the groups."""
  *shape, channels = x.shape
  return x.reshape(*shape, groups, channels // groups).swapaxes(-1, -2).reshape(x.shape)


class Layers(NamedTuple):
  """Arguments that all layers of a network share."""

  train: bool  # True: batch norm uses and updates the statistics of the batch
  axis_name: str | None  # axis of devices that the statistics span
  dtype: Any = None  # computation type; None: the common type of inputs and parameters

  def conv(self, channels: int, kernel_size: int, *, name: str, **options: Any) -> nn.Conv:
    """The function of this name with these arguments."""
    return conv(channels, kernel_size, dtype=self.dtype, name=name, **options)

  def norm(self, name: str) -> BatchNorm:
    """The function of this name with these arguments."""
    return norm(train=self.train, axis_name=self.axis_name, dtype=self.dtype, name=name)
