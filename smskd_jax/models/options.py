"""Options that the networks of all families share."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from smskd_jax import errors

DTYPES = ("float32", "bfloat16")


def scale_channels(family: str, channels: Sequence[int], width: float) -> tuple[int, ...]:
  """Multiplies numbers of channels by `width`; rounds, to one at least.

  Raises:
    ValueError: width is not a positive number.
  """
  errors.check_positive(family, width=width)
  return tuple(max(1, round(width * c)) for c in channels)


def parse_dtype(family: str, dtype: str) -> Any:
  """Computation type for Flax: None, the type of inputs and parameters, for 'float32'.

  Raises:
    ValueError: dtype is not one of `DTYPES`.
  """
  errors.check_choice(family, DTYPES, dtype=dtype)
  return None if dtype == "float32" else jnp.dtype(dtype)
