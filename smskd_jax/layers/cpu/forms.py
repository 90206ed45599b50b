"""The fastest form of a convolution on a CPU, by direction and shape.

The table is from measurements of single convolutions (docs/performance.md): oneDNN's form is the fastest for nearly
every shape, Winograd's for 3x3 kernels of many channels, where it computes less than half of the products.
"""

import enum
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Direction(enum.StrEnum):
  """Convolution and both gradients; the values are the handlers of `runtime/onednn.cc`."""

  FORWARD = "forward"
  INPUT_GRADIENT = "input_gradient"
  KERNEL_GRADIENT = "kernel_gradient"


class Form(enum.Enum):
  """Implementations of a convolution."""

  XLA = enum.auto()
  WINOGRAD = enum.auto()
  ONEDNN = enum.auto()


class Convolution(NamedTuple):
  """Shapes and options of a convolution; hashable."""

  x: Shape  # [b, h, w, i]
  kernel: Shape  # [height, width, i, o]
  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]  # before and after each axis
  precision: object = None  # as for `lax.conv_general_dilated`

  @property
  def output(self) -> Shape:
    """Shape of the output, [b, h, w, o]."""
    axes = zip(self.x[1:3], self.kernel[:2], self.strides, self.padding, strict=True)
    sides = ((size + sum(padding) - kernel) // stride + 1 for size, kernel, stride, padding in axes)
    return (self.x[0], *sides, self.kernel[3])

  def result(self, direction: Direction) -> Shape:
    """Shape of the result of a direction: of the output, of x, or of the kernel."""
    return {
      Direction.FORWARD: self.output,
      Direction.INPUT_GRADIENT: self.x,
      Direction.KERNEL_GRADIENT: self.kernel,
    }[direction]


_NEVER = 1 << 31
# Number of channels, of inputs and of outputs, from which Winograd's form is the fastest: with oneDNN, and without.
# With fewer, the sums around the products cost more than the products save.
_WINOGRAD_CHANNELS = {
  Direction.FORWARD: (128, 128),
  Direction.INPUT_GRADIENT: (128, 128),
  Direction.KERNEL_GRADIENT: (_NEVER, 128),
}


def choose(direction: Direction, conv: Convolution, dtype: np.dtype, *, has_onednn: bool) -> Form:
  """The fastest form of a direction that is defined for shapes and type, float32 or float64."""
  with_onednn = has_onednn and dtype == np.float32
  channels = _WINOGRAD_CHANNELS[direction][0 if with_onednn else 1]
  if _is_winograds(conv) and min(conv.kernel[2:]) >= channels:
    return Form.WINOGRAD
  return Form.ONEDNN if with_onednn else Form.XLA


def _is_winograds(conv: Convolution) -> bool:
  """True if `winograd.py` computes this convolution."""
  even = conv.x[1] % 2 == conv.x[2] % 2 == 0
  return even and conv.kernel[:2] == (3, 3) and conv.strides == (1, 1) and conv.padding == ((1, 1), (1, 1))
