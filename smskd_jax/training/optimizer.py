"""Optimizers by name: optax, with the conventions of the KD literature, and DOT."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smskd_jax.errors import check_decay, check_non_negative, check_positive_integer


def sgd(
  schedule: optax.Schedule, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
  """SGD as in PyTorch, with weight decay added to the gradient of every parameter.

  Scales and offsets of batch norm and the methods' parameters are decayed too, as in all public KD code.
  """
  check_decay(momentum=momentum)
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
  check_decay(b1=b1, b2=b2)
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
  """Adam with weight decay added to the gradient, as in PyTorch's `Adam`."""
  check_decay(b1=b1, b2=b2)
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
  """SGD for large batches with a learning rate for each layer: `optax.lars`.

  You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, https://arxiv.org/abs/1708.03888.
  Biases and batch norm's parameters have neither weight decay nor a layer-wise rate, as is usual.
  """
  check_decay(momentum=momentum)
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
  """Adam for large batches with a learning rate for each layer: `optax.lamb`.

  Weight decay applies to weights alone.

  You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, https://arxiv.org/abs/1904.00962
  """
  check_decay(b1=b1, b2=b2)
  check_non_negative(eps=eps, weight_decay=weight_decay)
  return optax.lamb(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=_weight_mask)


def dot(
  schedule: optax.Schedule, *, momentum: float = 0.9, delta: float = 0.075, weight_decay: float = 5e-4
) -> optax.GradientTransformationExtraArgs:
  """DOT: SGD with one momentum for the gradient of the task and one for that of distillation.

  Zhao, Cui, Song, "DOT: A Distillation-Oriented Trainer", ICCV 2023, https://arxiv.org/abs/2307.08436

    v_task    <- (mu - delta) v_task    + g_task + decay * p
    v_distill <- (mu + delta) v_distill + g_distill
    p         <- p - rate (v_task + v_distill)

  The larger momentum lets distillation lead. g_distill is the gradient of all terms but the cross-entropy, SMSKD's
  reference term among them. The paper's delta is 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet.

  As in the public code, weight decay belongs to the task's gradient, and a parameter that has only one of the two
  gradients (a regressor; layers behind a hint) uses mu and decays with the gradient that it has. Difference: there a
  gradient is missing if no path leads to the parameter, here if the gradient is zero in every component.
  """
  if not (0 <= delta <= momentum and momentum + delta < 1):
    raise ValueError(f"delta: {delta} must keep momentum - delta and momentum + delta in [0, 1)")
  check_non_negative(weight_decay=weight_decay)
  return optax.chain(scale_by_dot(momentum, delta, weight_decay), optax.scale_by_learning_rate(schedule))


class DotState(NamedTuple):
  """Momenta of DOT."""

  task: Any
  distill: Any


def scale_by_dot(momentum: float, delta: float, weight_decay: float) -> optax.GradientTransformationExtraArgs:
  """The update of `dot` before the learning rate.

  Args:
    momentum: mu.
    delta: difference of the momenta from mu.
    weight_decay: of the parameters.

  Returns:
    A transformation whose `update(task_gradient, state, params, distill=gradient)` takes both gradients.
  """

  def init(params):
    return DotState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None, *, distill, **others):
    del others

    def momenta(task, distill, v_task, v_distill, parameter):
      has_task, has_distill = jnp.any(task != 0), jnp.any(distill != 0)
      only_distill = has_distill & ~has_task
      decay = weight_decay * parameter
      v_task = jnp.where(has_distill, momentum - delta, momentum).astype(task.dtype) * v_task
      v_distill = jnp.where(has_task, momentum + delta, momentum).astype(task.dtype) * v_distill
      return (
        v_task + task + jnp.where(only_distill, 0, decay),
        v_distill + distill + jnp.where(only_distill, decay, 0),
      )

    pairs = jax.tree.map(momenta, updates, distill, state.task, state.distill, params)
    state = DotState(*jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0)), pairs))
    return jax.tree.map(jnp.add, state.task, state.distill), state

  return optax.GradientTransformationExtraArgs(init, update)


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
  {"adam": adam, "adamw": adamw, "dot": dot, "lamb": lamb, "lars": lars, "sgd": sgd}
)
# Optimizers whose `update` takes the gradient of the task and, as `distill`, that of all other terms.
SEPARATE_GRADIENT_OPTIMIZERS = frozenset({"dot"})


def make(
  name: str,
  schedule: optax.Schedule,
  *,
  clip_norm: float = 0.0,
  accumulate_steps: int = 1,
  **options: Any,
) -> optax.GradientTransformation:
  """Makes an optimizer by its name, with gradient clipping and accumulation.

  Args:
    name: of `OPTIMIZERS`.
    schedule: learning rate by step of the stage.
    clip_norm: greatest global norm of the gradient; 0: no clipping.
    accumulate_steps: steps per update, which uses the mean of their gradients. Batch norm sees each step's batch alone.
    **options: the optimizer's own.

  Raises:
    ValueError: a bad option, or one that the optimizer does not support.
  """
  check_non_negative(clip_norm=clip_norm)
  check_positive_integer(accumulate_steps=accumulate_steps)
  if name in SEPARATE_GRADIENT_OPTIMIZERS and (clip_norm or accumulate_steps > 1):
    raise ValueError(
      f"{name!r} has two gradients, which are neither clipped nor accumulated; leave both fields out"
    )

  def rate_by_update(count):
    return schedule(count * accumulate_steps)  # schedules count steps of the stage, `count` is of updates

  optimizer = OPTIMIZERS[name](schedule if accumulate_steps == 1 else rate_by_update, **options)
  if clip_norm:
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
  if accumulate_steps == 1:
    return optimizer
  return optax.MultiSteps(optimizer, accumulate_steps).gradient_transformation()


def _weight_mask(params: optax.Params) -> Any:
  """True for weights and kernels, False for biases and parameters of batch norm."""
  return jax.tree.map(lambda x: x.ndim > 1, params)
