"""Convolutions, computed on CPUs in forms that are faster there than XLA's own. Same numbers, to rounding.

On two cores, of one step of resnet32x4 -> resnet8x4 (`benchmarks/step.py`): kernels of 1x1 as matrix products;
of 3x3 and many channels by Winograd's minimal filtering, forward and both gradients; and the gradients of other large
kernels as a sum over pieces of the batch, whose patches fit a cache. GPUs and TPUs have kernels of their own, which
these forms would hide from them: what is compiled for them has convolutions as they are written.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from smskd_jax.layers import winograd

WINOGRAD_CHANNELS = 128  # on both sides; with fewer the sums around the products cost more than they save
PIECES_KERNEL = 32 * 64  # channels in times out; below, one gradient over the whole batch is as fast
PIECE = 4096  # positions of all images of a piece

_as_written: contextvars.ContextVar[bool] = contextvars.ContextVar("as_written", default=False)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
  """What is traced within has convolutions as they are written, on CPUs too: for other software, or to be counted."""
  token = _as_written.set(True)
  try:
    yield
  finally:
    _as_written.reset(token)


def convolve(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **how: Any
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, in the form that is fastest on the platform that it is compiled for.

  Args:
    x: [b, h, w, i].
    kernel: [height, width, i, o].
    strides: along both axes, as the rest of what Flax gives.
    padding: before and after each axis.
    **how: dilations, groups and the like.
  """
  dilated = any(n != 1 for name in ("lhs_dilation", "rhs_dilation") for n in how[name])
  written = lambda x, kernel: lax.conv_general_dilated(x, kernel, strides, padding, **how)
  if dilated or how["feature_group_count"] != 1:
    return written(x, kernel)
  if kernel.shape[:2] == (1, 1) and not np.any(padding):
    x = x[:, :: strides[0], :: strides[1]]
    y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=how["precision"])
    return y.reshape(*x.shape[:-1], y.shape[-1])
  filtered = _filters(x, kernel, tuple(strides), padding)
  if _as_written.get() or not (filtered or _in_pieces(x, kernel)):
    return written(x, kernel)
  return _for_cpus(written, filtered, x, kernel)


def _filters(x, kernel, strides, padding) -> bool:
  """Whether Winograd's filtering is defined here, and worth it."""
  even = not (x.shape[1] % 2 or x.shape[2] % 2)
  square = kernel.shape[:2] == (3, 3) and strides == (1, 1) and all(tuple(p) == (1, 1) for p in padding)
  wide = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
  return even and square and wide and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS


def _in_pieces(x, kernel) -> bool:
  return kernel.shape[2] * kernel.shape[3] >= PIECES_KERNEL and _pieces(x) > 1


def _pieces(x) -> int:
  """How many: as few as make them small enough, if the batch divides by them."""
  images, positions = x.shape[0], x.shape[1] * x.shape[2]
  enough = (n for n in range(1, images + 1) if images % n == 0 and images // n * positions <= PIECE)
  return next(enough, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _for_cpus(written: Callable, filtered: bool, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution `written`, of which a CPU gets another form; `filtered`: whether Winograd's."""
  return lax.platform_dependent(x, kernel, cpu=winograd.convolve if filtered else written, default=written)


def _forward(written, filtered, x, kernel):
  return _for_cpus(written, filtered, x, kernel), (x, kernel)


def _backward(written, filtered, residuals, gradient):
  of_x = lambda x, kernel, gradient: jax.vjp(lambda x: written(x, kernel), x)[1](gradient)[0]
  of_kernel = lambda x, kernel, gradient: jax.vjp(lambda k: written(x, k), kernel)[1](gradient)[0]

  def piece_by_piece(x, kernel, gradient):
    count = _pieces(x)
    parts = zip(jnp.split(x, count), jnp.split(gradient, count), strict=True)
    return sum(of_kernel(of_images, kernel, of_outputs) for of_images, of_outputs in parts)

  def cpu(x, kernel, gradient):
    if filtered:
      return winograd.input_gradient(gradient, kernel), winograd.kernel_gradient(x, gradient)
    return of_x(x, kernel, gradient), piece_by_piece(x, kernel, gradient)

  def default(x, kernel, gradient):
    return of_x(x, kernel, gradient), of_kernel(x, kernel, gradient)

  return lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)


_for_cpus.defvjp(_forward, _backward)
