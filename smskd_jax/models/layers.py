"""The layers that the families share, with PyTorch's conventions, so that its checkpoints can be imported.

A submodule is named like its PyTorch counterpart, with `_` for the dots inside the name (`layer1_0` for
`layer1.0`): `models/torch_weights.py` relies on it.
"""

from collections.abc import Sequence
import math
import numbers
from typing import Any

from flax import linen as nn
import jax

from smskd_jax.models.batch_norm import BatchNorm


def _he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """Normal weights [h, w, in, out] of variance 2 / fan-out: He et al., https://arxiv.org/abs/1502.01852.

  Drawn flat, because on a CPU XLA takes seconds to compile a draw of four dimensions, for each shape.
  """
  height, width, _, outputs = shape
  scale = math.sqrt(2.0 / (height * width * outputs))
  return scale * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


def conv(channels: int, size: int, *, name: str, stride: int = 1, use_bias: bool = False) -> nn.Conv:
  """A square convolution padded by half its size, He-initialised by its fan-out.

  The padding is written out because with stride 2 "SAME" pads an even map on one side, PyTorch on both.
  """
  pad = (size // 2, size // 2)
  return nn.Conv(
    channels,
    (size, size),
    strides=stride,
    padding=(pad, pad),
    use_bias=use_bias,
    kernel_init=_he_normal,
    name=name,
  )


def norm(*, name: str, train: bool, axis_name: str | None) -> BatchNorm:
  """Batch normalisation; in training its statistics span the devices of `axis_name`."""
  return BatchNorm(train=train, axis_name=axis_name, name=name)


def linear(features: int, inputs: int, *, name: str) -> nn.Dense:
  """A linear layer; weights and biases start uniform between -+1/sqrt(inputs), as PyTorch's do."""
  bound = 1.0 / math.sqrt(inputs)

  def uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.Dense(features, kernel_init=uniform, bias_init=uniform, name=name)


def scale_channels(name: str, channels: Sequence[int], width: float) -> tuple[int, ...]:
  """`width` times as many channels everywhere, rounded, and at least one."""
  if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 0 < width < math.inf:
    raise ValueError(f"{name}: width must be a positive number, got {width!r}")
  return tuple(max(1, round(width * c)) for c in channels)


def check_num_classes(name: str, num_classes: int) -> None:
  """Refuses a classifier without classes."""
  if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral) or num_classes < 1:
    raise ValueError(f"{name}: num_classes must be a positive integer, got {num_classes!r}")
