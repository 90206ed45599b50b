"""Optimisers and learning-rate schedules by name: optax, with the conventions of the KD literature."""

from collections.abc import Callable, Mapping
import math
from types import MappingProxyType

import optax

from smskd_jax.training.dot import scale_by_dot


def sgd(
  schedule: optax.Schedule, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
  """SGD as PyTorch has it: decay on every parameter, added to the gradient before the momentum.

  Batch norm's scales and offsets and the methods' own parameters are decayed too, as in all public KD code.
  """
  if not 0 <= momentum < 1:
    raise ValueError(f"momentum: {momentum} is not in [0, 1)")
  _not_negative(weight_decay=weight_decay)
  return optax.chain(
    optax.add_decayed_weights(weight_decay),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(schedule),
  )


def adamw(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay on every parameter: `optax.adamw`."""
  for name, value in (("b1", b1), ("b2", b2)):
    if not 0 <= value < 1:
      raise ValueError(f"{name}: {value} is not in [0, 1)")
  _not_negative(eps=eps, weight_decay=weight_decay)
  return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def dot(
  schedule: optax.Schedule, *, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 5e-4
) -> optax.GradientTransformationExtraArgs:
  """SGD with one momentum for the task and one for distillation; see `training/dot.py`.

  The step gives it the gradient of cross-entropy and that of all other terms, SMSKD's reference among them, apart. The
  paper's delta is 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet.
  """
  if not (0 <= delta <= momentum and momentum + delta < 1):
    raise ValueError(f"delta: {delta} must keep momentum - delta and momentum + delta in [0, 1)")
  _not_negative(weight_decay=weight_decay)
  return optax.chain(scale_by_dot(momentum, delta, weight_decay), optax.scale_by_learning_rate(schedule))


def constant(peak: float, steps_per_epoch: int, epochs: int, *, warmup_epochs: float = 0.0) -> optax.Schedule:
  """The same rate throughout."""
  del epochs
  return _warmed_up(optax.constant_schedule(peak), peak, steps_per_epoch, warmup_epochs)


def cosine(peak: float, steps_per_epoch: int, epochs: int, *, warmup_epochs: float = 0.0) -> optax.Schedule:
  """Half a cosine from the peak to zero, step by step, after the warm-up."""
  steps = epochs * steps_per_epoch - round(warmup_epochs * steps_per_epoch)
  if steps <= 0:
    raise ValueError(f"warmup_epochs: {warmup_epochs} leaves nothing of {epochs} epochs")
  return _warmed_up(optax.cosine_decay_schedule(peak, steps), peak, steps_per_epoch, warmup_epochs)


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
    epochs: of the whole stage.
    milestones: ascending shares of `epochs`, each rounded to a whole epoch, after which the rate drops. The
      defaults are the 150, 180 and 210 of 240 of the CRD recipe, whatever the length of the stage.
    factor: in (0, 1].
    warmup_epochs: of linear warm-up. Milestones count from the stage's start.
  """
  if not all(0 < m <= 1 for m in milestones) or list(milestones) != sorted(milestones):
    raise ValueError(f"milestones: {milestones} are not ascending shares of the epochs, in (0, 1]")
  if not 0 < factor <= 1:
    raise ValueError(f"factor: {factor} is not in (0, 1]")
  warmup = round(warmup_epochs * steps_per_epoch)
  # Milestones that round to the same epoch multiply, as a dict of boundaries would not.
  boundaries: dict[int, float] = {}
  for share in milestones:
    step = round(share * epochs) * steps_per_epoch - warmup
    boundaries[step] = boundaries.get(step, 1.0) * factor
  return _warmed_up(optax.piecewise_constant_schedule(peak, boundaries), peak, steps_per_epoch, warmup_epochs)


def _warmed_up(
  schedule: optax.Schedule, peak: float, steps_per_epoch: int, warmup_epochs: float
) -> optax.Schedule:
  """Linear from 0 to the peak, then the schedule from its own start."""
  _not_negative(warmup_epochs=warmup_epochs)
  steps = round(warmup_epochs * steps_per_epoch)
  if steps == 0:
    return schedule
  return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), schedule], [steps])


def _not_negative(**values: float) -> None:
  for name, value in values.items():
    if not (value >= 0 and math.isfinite(value)):
      raise ValueError(f"{name}: {value} is not a number of 0 or more")


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
  {"adamw": adamw, "dot": dot, "sgd": sgd}
)
# Those whose `update` takes the gradient of the task and, as `distill`, that of all other terms.
OF_TWO_GRADIENTS = frozenset({"dot"})
SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = MappingProxyType(
  {"constant": constant, "cosine": cosine, "multistep": multistep}
)
