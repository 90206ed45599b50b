"""Learning-rate schedules by name: optax, with the conventions of the KD literature. Pure.

A factory takes the peak rate, the steps per epoch and the epochs of the schedule, and returns a function of the step.
`make` places a stage in a schedule: its own, or one that spans several stages of a network.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import optax

from smskd_jax.errors import check_non_negative, check_positive_integer


def constant(peak: float, steps_per_epoch: int, epochs: int, *, warmup_epochs: float = 0.0) -> optax.Schedule:
  """Constant rate."""
  del epochs
  return _with_warmup(optax.constant_schedule(peak), peak, steps_per_epoch, warmup_epochs)


def cosine(peak: float, steps_per_epoch: int, epochs: int, *, warmup_epochs: float = 0.0) -> optax.Schedule:
  """Half a cosine from the peak to zero, updated every step, after the warm-up."""
  steps = epochs * steps_per_epoch - _warmup_steps(warmup_epochs, steps_per_epoch)
  if steps <= 0:
    raise ValueError(f"warmup_epochs: {warmup_epochs} leaves nothing of {epochs} epochs")
  return _with_warmup(optax.cosine_decay_schedule(peak, steps), peak, steps_per_epoch, warmup_epochs)


def multistep(
  peak: float,
  steps_per_epoch: int,
  epochs: int,
  *,
  milestones: tuple[float, ...] = (150 / 240, 180 / 240, 210 / 240),
  factor: float = 0.1,
  warmup_epochs: float = 0.0,
) -> optax.Schedule:
  """Multiplies the rate by `factor` at each milestone.

  Args:
    peak: the rate before the first milestone.
    steps_per_epoch: to convert epochs.
    epochs: of the schedule.
    milestones: ascending fractions of `epochs`, each rounded to a whole epoch, after which the rate drops. The
      defaults are epochs 150, 180 and 210 of 240, as in CRD's recipe.
    factor: in (0, 1].
    warmup_epochs: of linear warm-up. Milestones count from the schedule's start.
  """
  if not all(0 < m <= 1 for m in milestones) or list(milestones) != sorted(milestones):
    raise ValueError(f"milestones: {milestones} are not ascending fractions of the epochs, in (0, 1]")
  if not 0 < factor <= 1:
    raise ValueError(f"factor: {factor} is not in (0, 1]")
  warmup = _warmup_steps(warmup_epochs, steps_per_epoch)
  # Milestones that round to the same epoch multiply, as a dict of boundaries would not.
  boundaries: dict[int, float] = {}
  for fraction in milestones:
    step = round(fraction * epochs) * steps_per_epoch - warmup
    boundaries[step] = boundaries.get(step, 1.0) * factor
  return _with_warmup(
    optax.piecewise_constant_schedule(peak, boundaries), peak, steps_per_epoch, warmup_epochs
  )


def step(
  peak: float,
  steps_per_epoch: int,
  epochs: int,
  *,
  every_epochs: int = 50,
  factor: float = 0.1,
  warmup_epochs: float = 0.0,
) -> optax.Schedule:
  """Multiplies the rate by `factor` after every `every_epochs` epochs of the schedule."""
  check_positive_integer(every_epochs=every_epochs)
  milestones = tuple(epoch / epochs for epoch in range(every_epochs, epochs, every_epochs))
  return multistep(
    peak, steps_per_epoch, epochs, milestones=milestones, factor=factor, warmup_epochs=warmup_epochs
  )


def _with_warmup(
  schedule: optax.Schedule, peak: float, steps_per_epoch: int, warmup_epochs: float
) -> optax.Schedule:
  """A linear rise from 0 to the peak, then the schedule from its start."""
  steps = _warmup_steps(warmup_epochs, steps_per_epoch)
  if steps == 0:
    return schedule
  return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), schedule], [steps])


def _warmup_steps(warmup_epochs: float, steps_per_epoch: int) -> int:
  check_non_negative(warmup_epochs=warmup_epochs)
  return round(warmup_epochs * steps_per_epoch)


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = MappingProxyType(
  {"constant": constant, "cosine": cosine, "multistep": multistep, "step": step}
)


def make(
  name: str,
  peak: float,
  steps_per_epoch: int,
  epochs: int,
  *,
  start_epoch: int = 0,
  total_epochs: int = 0,
  first_epoch: int = 0,
  **options: Any,
) -> optax.Schedule:
  """Makes the learning-rate schedule of a stage, by its name.

  Args:
    name: of `SCHEDULES`.
    peak: the rate before any decay.
    steps_per_epoch: to convert epochs.
    epochs: of the stage.
    start_epoch: where in the schedule the stage begins.
    total_epochs: of the schedule; 0: those of the stage.
    first_epoch: the epoch of the first step by `TrainState.step`: not 0 where the stage continues another stage.
    **options: the factory's own.

  Raises:
    ValueError: a bad option, or a stage that ends after the schedule.
  """
  if start_epoch + epochs > (total_epochs or epochs):
    raise ValueError(
      f"total_epochs: {total_epochs}, but the stage has the epochs {start_epoch} to {start_epoch + epochs} of its "
      "schedule; a stage with a schedule of its own has start_epoch 0 and total_epochs 0"
    )
  schedule = SCHEDULES[name](peak, steps_per_epoch, total_epochs or epochs, **options)
  offset = (start_epoch - first_epoch) * steps_per_epoch
  return schedule if offset == 0 else lambda step: schedule(step + offset)
