"""What the factories of all families check and compute of their options."""

from collections.abc import Sequence
import math
import numbers


def scale_channels(name: str, channels: Sequence[int], width: float) -> tuple[int, ...]:
  """`width` times as many channels everywhere, rounded, and at least one."""
  if isinstance(width, bool) or not isinstance(width, numbers.Real) or not 0 < width < math.inf:
    raise ValueError(f"{name}: width must be a positive number, got {width!r}")
  return tuple(max(1, round(width * c)) for c in channels)


def check_num_classes(name: str, num_classes: int) -> None:
  """Refuses a classifier without classes."""
  if isinstance(num_classes, bool) or not isinstance(num_classes, numbers.Integral) or num_classes < 1:
    raise ValueError(f"{name}: num_classes must be a positive integer, got {num_classes!r}")
