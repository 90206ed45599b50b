"""Convolutions, on CPUs in faster forms than XLA's own; equal up to rounding.

On two cores, of one step of resnet32x4 -> resnet8x4 (`benchmarks/step.py`): kernels of 1x1 as matrix products;
of 3x3 and many channels by Winograd's minimal filtering, forward and both gradients; and the gradients of other large
kernels as a sum over chunks of the batch, whose patches fit a cache. GPUs and TPUs have kernels of their own, which
these forms would hide: programs for them have XLA's convolutions.
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
MIN_CHUNKED_KERNEL = 32 * 64  # channels in times out; below, one gradient over the whole batch is as fast
CHUNK_POSITIONS = 4096  # positions of all images of a chunk

_use_xla: contextvars.ContextVar[bool] = contextvars.ContextVar("use_xla", default=False)


@contextlib.contextmanager
def use_xla_convolution() -> Iterator[None]:
  """Traces XLA's plain convolutions within, on CPUs too: for export and operation counts."""
  token = _use_xla.set(True)
  try:
    yield
  finally:
    _use_xla.reset(token)


def convolve(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
  """`jax.lax.conv_general_dilated` in the fastest form for the platform.

  Args:
    x: [b, h, w, i].
    kernel: [height, width, i, o].
    strides: along both axes.
    padding: before and after each axis.
    **options: the other arguments of `lax.conv_general_dilated`, as Flax passes them.
  """
  dilated = any(n != 1 for name in ("lhs_dilation", "rhs_dilation") for n in options[name])

  def xla_conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)

  if dilated or options["feature_group_count"] != 1:
    return xla_conv(x, kernel)
  if kernel.shape[:2] == (1, 1) and not np.any(padding):
    x = x[:, :: strides[0], :: strides[1]]
    y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=options["precision"])
    return y.reshape(*x.shape[:-1], y.shape[-1])
  winograd_is_faster = _use_winograd(x, kernel, tuple(strides), padding)
  if _use_xla.get() or not (winograd_is_faster or _use_chunks(x, kernel)):
    return xla_conv(x, kernel)
  return _cpu_conv(xla_conv, winograd_is_faster, x, kernel)


def _use_winograd(x, kernel, strides, padding) -> bool:
  """True if Winograd's filtering is defined for these shapes, and faster."""
  even = not (x.shape[1] % 2 or x.shape[2] % 2)
  square = kernel.shape[:2] == (3, 3) and strides == (1, 1) and all(tuple(p) == (1, 1) for p in padding)
  wide = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
  return even and square and wide and min(kernel.shape[2:]) >= WINOGRAD_CHANNELS


def _use_chunks(x, kernel) -> bool:
  return kernel.shape[2] * kernel.shape[3] >= MIN_CHUNKED_KERNEL and _num_chunks(x) > 1


def _num_chunks(x) -> int:
  """Smallest number of chunks of the batch with at most `CHUNK_POSITIONS` positions each."""
  images, positions = x.shape[0], x.shape[1] * x.shape[2]
  enough = (n for n in range(1, images + 1) if images % n == 0 and images // n * positions <= CHUNK_POSITIONS)
  return next(enough, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cpu_conv(xla_conv: Callable, use_winograd: bool, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolution with other forms on a CPU: Winograd's, if `use_winograd`."""
  return lax.platform_dependent(
    x, kernel, cpu=winograd.convolve if use_winograd else xla_conv, default=xla_conv
  )


def _forward(xla_conv, use_winograd, x, kernel):
  return _cpu_conv(xla_conv, use_winograd, x, kernel), (x, kernel)


def _backward(xla_conv, use_winograd, residuals, gradient):
  def input_gradient(x, kernel, gradient):
    return jax.vjp(lambda x: xla_conv(x, kernel), x)[1](gradient)[0]

  def kernel_gradient(x, kernel, gradient):
    return jax.vjp(lambda k: xla_conv(x, k), kernel)[1](gradient)[0]

  def chunked_kernel_gradient(x, kernel, gradient):
    count = _num_chunks(x)
    parts = zip(jnp.split(x, count), jnp.split(gradient, count), strict=True)
    return sum(kernel_gradient(images, kernel, outputs) for images, outputs in parts)

  def cpu(x, kernel, gradient):
    if use_winograd:
      return winograd.input_gradient(gradient, kernel), winograd.kernel_gradient(x, gradient)
    return input_gradient(x, kernel, gradient), chunked_kernel_gradient(x, kernel, gradient)

  def default(x, kernel, gradient):
    return input_gradient(x, kernel, gradient), kernel_gradient(x, kernel, gradient)

  return lax.platform_dependent(*residuals, gradient, cpu=cpu, default=default)


_cpu_conv.defvjp(_forward, _backward)
