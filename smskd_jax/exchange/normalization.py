"""Normalisation of a network's images as a user states it: mean and deviation of each channel, where white is 1."""

from collections.abc import Sequence
import math

from smskd_jax.data.dataset import ChannelStats
from smskd_jax.errors import UserError


def parse(mean: str | None, std: str | None) -> ChannelStats | None:
  """The flags --mean and --std, numbers joined by commas; None where neither is given.

  Raises:
    UserError: one without the other, or values that are no mean or no deviation of such images.
  """
  if mean is None and std is None:
    return None
  for flag, given in (("--mean", mean), ("--std", std)):
    if given is None:
      raise UserError(f"{flag}: missing; --mean and --std go together")
  assert mean is not None and std is not None
  found = ChannelStats(_numbers("--mean", mean), _numbers("--std", std))
  for value in found.mean:
    if not 0 <= value <= 1:
      raise UserError(
        f"--mean: {value:g} is not in [0, 1]; it is of images whose white is 1, so divide by 255"
      )
  for value in found.std:
    if not value > 0:
      raise UserError(f"--std: {value:g} is not positive; a deviation is greater than 0")
  return found


def _numbers(flag: str, text: str) -> tuple[float, ...]:
  try:
    values = tuple(map(float, text.split(",")))
  except ValueError:
    values = (math.nan,)
  if not all(map(math.isfinite, values)):
    raise UserError(f"{flag}: {text!r} are not numbers joined by commas, as 0.507,0.487,0.441")
  return values


def of_channels(stated: ChannelStats, channels: int) -> ChannelStats:
  """The normalisation with one value for each channel: of a single one, that for all.

  Raises:
    UserError: another number of values.
  """
  return ChannelStats(
    *(_of_channels(flag, of, channels) for flag, of in zip(("--mean", "--std"), stated, strict=True))
  )


def _of_channels(flag: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
  if len(values) == 1:
    return tuple(values) * channels
  if len(values) != channels:
    raise UserError(
      f"{flag}: {len(values)} values, "
      f"but the network's images have {channels} channels; give one for each or one for all"
    )
  return tuple(values)
