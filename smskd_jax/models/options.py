"""What the factories of all families check and compute of their options."""

from collections.abc import Sequence
import math
import numbers
from typing import Any

import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


def scale_channels(name: str, channels: Sequence[int], width: float) -> tuple[int, ...]:
  """`width` times as many channels everywhere, rounded, and at least one."""
  if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 0 < width < math.inf:
    raise ValueError(f"{name}: width must be a positive number, got {width!r}")
  return tuple(max(1, round(width * c)) for c in channels)


def check_positive_integer(name: str, option: str, value: int) -> None:
  """Refuses everything but 1, 2, 3, ..."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
    raise ValueError(f"{name}: {option} must be a positive integer, got {value!r}")


def check_num_classes(name: str, num_classes: int) -> None:
  """Refuses a classifier without classes."""
  check_positive_integer(name, "num_classes", num_classes)


def parse_dtype(name: str, value: str) -> Any:
  """The type that a network computes in, for Flax: None, that of its parameters and inputs, for float32."""
  if value not in DTYPES:
    raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPES)}, got {value!r}")
  return None if value == "float32" else jnp.dtype(value)
