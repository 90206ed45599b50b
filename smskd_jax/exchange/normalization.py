"""Normalisation of a network's images: flags, JSON, and values of a store entry.

Mean and standard deviation are per channel, for images whose white is 1.
"""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError
from smskd_jax.runtime.store import StageEntry


def parse(mean: str | None, std: str | None) -> ChannelStats | None:
  """Parses the flags --mean and --std, numbers joined by commas; None where neither is given.

  Raises:
    UserError: only one flag is given, a mean is outside [0, 1], or a deviation is not positive.
  """
  if mean is None and std is None:
    return None
  for flag, text in (("--mean", mean), ("--std", std)):
    if text is None:
      raise UserError(f"{flag}: missing; --mean and --std go together")
  assert mean is not None and std is not None
  stats = ChannelStats(_parse_numbers("--mean", mean), _parse_numbers("--std", std))
  for value in stats.mean:
    if not 0 <= value <= 1:
      raise UserError(
        f"--mean: {value:g} is not in [0, 1]; it is of images whose white is 1, so divide by 255"
      )
  for value in stats.std:
    if not value > 0:
      raise UserError(f"--std: {value:g} is not positive; a deviation is greater than 0")
  return stats


def _parse_numbers(flag: str, text: str) -> tuple[float, ...]:
  try:
    values = tuple(map(float, text.split(",")))
  except ValueError:
    values = (math.nan,)
  if not all(map(math.isfinite, values)):
    raise UserError(f"{flag}: {text!r} are not numbers joined by commas, as 0.507,0.487,0.441")
  return values


def per_channel(stats: ChannelStats, channels: int) -> ChannelStats:
  """Repeats a single value for all channels.

  Raises:
    UserError: the number of values is neither 1 nor `channels`.
  """
  return ChannelStats(_repeat("--mean", stats.mean, channels), _repeat("--std", stats.std, channels))


def _repeat(flag: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
  if len(values) == 1:
    return tuple(values) * channels
  if len(values) != channels:
    raise UserError(
      f"{flag}: {len(values)} values, "
      f"but the network's images have {channels} channels; give one for each or one for all"
    )
  return tuple(values)


def from_json(stats: Mapping[str, Any] | None) -> ChannelStats | None:
  """The statistics of {'mean': [c numbers], 'std': [c numbers]}; None for None."""
  return None if stats is None else ChannelStats(tuple(stats["mean"]), tuple(stats["std"]))


def read_stored(final: Path) -> ChannelStats | None:
  """The normalisation that a store entry states for its `final` folder.

  None where it states none.
  """
  return from_json(StageEntry(final.parent.parent, final.parent.name).metadata().get("normalization"))
