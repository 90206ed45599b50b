"""Convolutions: XLA's, and on CPUs the forms of `layers/cpu`, equal up to rounding."""

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from smskd_jax.layers.cpu import primitives
from smskd_jax.layers.cpu.forms import Convolution

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
  plain = not dilated and options["feature_group_count"] == 1
  if plain and kernel.shape[:2] == (1, 1) and not np.any(padding):
    x = x[:, :: strides[0], :: strides[1]]
    y = jnp.dot(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=options["precision"])
    return y.reshape(*x.shape[:-1], y.shape[-1])
  wide = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
  if not (plain and wide) or _use_xla.get():
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)
  vertical, horizontal = ((int(before), int(after)) for before, after in padding)
  conv = Convolution(
    x.shape, kernel.shape, (strides[0], strides[1]), (vertical, horizontal), options["precision"]
  )
  return primitives.convolve(x, kernel, conv)
