"""Optimisers by name: optax, with the conventions of the KD literature."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import optax

from smskd_jax.training.dot import scale_by_dot
from smskd_jax.training.schedule import check_non_negative


def sgd(
  schedule: optax.Schedule, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
  """SGD as PyTorch has it: decay on every parameter, added to the gradient before the momentum.

  Batch norm's scales and offsets and the methods' own parameters are decayed too, as in all public KD code.
  """
  _check_unit_interval(momentum=momentum)
  check_non_negative(weight_decay=weight_decay)
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
  _check_unit_interval(b1=b1, b2=b2)
  check_non_negative(eps=eps, weight_decay=weight_decay)
  return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def adam(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
) -> optax.GradientTransformation:
  """Adam, with decay added to the gradient as PyTorch's `Adam` has it."""
  _check_unit_interval(b1=b1, b2=b2)
  check_non_negative(eps=eps, weight_decay=weight_decay)
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(schedule, b1=b1, b2=b2, eps=eps))


def lars(
  schedule: optax.Schedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 5e-4,
  trust_coefficient: float = 0.001,
) -> optax.GradientTransformation:
  """SGD for large batches, each layer at a rate of its own: `optax.lars`.

  You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888.
  Biases and batch norm's parameters have neither decay nor a rate of their own, as is usual.
  """
  _check_unit_interval(momentum=momentum)
  check_non_negative(weight_decay=weight_decay, trust_coefficient=trust_coefficient)
  return optax.lars(
    schedule,
    weight_decay=weight_decay,
    weight_decay_mask=_weight_mask,
    trust_coefficient=trust_coefficient,
    trust_ratio_mask=_weight_mask,
    momentum=momentum,
    nesterov=nesterov,
  )


def lamb(
  schedule: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-6,
  weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
  """Adam for large batches, each layer at a rate of its own: `optax.lamb`; decay of weights and kernels alone.

  You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, https://arxiv.org/abs/1904.00962
  """
  _check_unit_interval(b1=b1, b2=b2)
  check_non_negative(eps=eps, weight_decay=weight_decay)
  return optax.lamb(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_weight_mask)


def _check_unit_interval(**values: float) -> None:
  """Refuses what is not at least 0 and less than 1, by its name."""
  for name, value in values.items():
    if not 0 <= value < 1:
      raise ValueError(f"{name}: {value} is not in [0, 1)")


def _weight_mask(params: optax.Params) -> Any:
  """True of weights and kernels, False of biases and of what belongs to batch norm."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def dot(
  schedule: optax.Schedule, *, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 5e-4
) -> optax.GradientTransformationExtraArgs:
  """SGD with one momentum for the task and one for distillation; see `training/dot.py`.

  The step gives it the gradient of cross-entropy and that of all other terms, SMSKD's reference among them, apart. The
  paper's delta is 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet.
  """
  if not (0 <= delta <= momentum and momentum + delta < 1):
    raise ValueError(f"delta: {delta} must keep momentum - delta and momentum + delta in [0, 1)")
  check_non_negative(weight_decay=weight_decay)
  return optax.chain(scale_by_dot(momentum, delta, weight_decay), optax.scale_by_learning_rate(schedule))


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
  {"adam": adam, "adamw": adamw, "dot": dot, "lamb": lamb, "lars": lars, "sgd": sgd}
)
# Those whose `update` takes the gradient of the task and, as `distill`, that of all other terms.
SEPARATE_GRADIENT_OPTIMIZERS = frozenset({"dot"})


def make(
  name: str,
  schedule: optax.Schedule,
  *,
  clip_norm: float = 0.0,
  accumulate_steps: int = 1,
  **options: Any,
) -> optax.GradientTransformation:
  """An optimiser of the table, with what any of them may have.

  Args:
    name: of `OPTIMIZERS`.
    schedule: the rate by step of the stage.
    clip_norm: the greatest norm of the whole gradient; 0 for no bound.
    accumulate_steps: how many steps give one update, by the mean of their gradients. Batch norm sees each by itself.
    **options: the optimiser's own.

  Raises:
    ValueError: a bad option, or one that the optimiser cannot have.
  """
  check_non_negative(clip_norm=clip_norm)
  if accumulate_steps < 1:
    raise ValueError(f"accumulate_steps: {accumulate_steps} is not 1 or more")
  if name in SEPARATE_GRADIENT_OPTIMIZERS and (clip_norm or accumulate_steps > 1):
    raise ValueError(
      f"{name!r} has two gradients, which are neither clipped nor accumulated; leave both fields out"
    )
  # The rate goes by steps of the stage, of which an update takes several.
  rate = schedule if accumulate_steps == 1 else lambda count: schedule(count * accumulate_steps)
  made = OPTIMIZERS[name](rate, **options)
  if clip_norm:
    made = optax.chain(optax.clip_by_global_norm(clip_norm), made)
  if accumulate_steps == 1:
    return made
  return optax.MultiSteps(made, accumulate_steps).gradient_transformation()
