"""DOT: separate momenta for the gradient of the task and for that of distillation.

Zhao, Cui, Song, "DOT: A Distillation-Oriented Trainer", ICCV 2023, https://arxiv.org/abs/2307.08436

  v_task    <- (mu - delta) v_task    + g_task + decay * p
  v_distill <- (mu + delta) v_distill + g_distill
  p         <- p - rate (v_task + v_distill)

The larger momentum of distillation lets it lead. As in the public code, weight decay belongs to the task's gradient,
and a parameter that has one of the two gradients only (a regressor; layers behind a hint) uses mu, and decays with the
gradient that it has. Difference: there a gradient is missing if no path leads to the parameter, here if it is zero in
every component.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class DotState(NamedTuple):
  """The two momenta."""

  task: Any
  distill: Any


def scale_by_dot(momentum: float, delta: float, weight_decay: float) -> optax.GradientTransformationExtraArgs:
  """The direction of DOT, before the rate.

  Args:
    momentum: mu.
    delta: by how much the momenta differ from mu.
    weight_decay: of the parameters.

  Returns:
    A transformation whose `update(task_gradient, state, params, distill=gradient)` takes both gradients.
  """

  def init(params):
    return DotState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None, *, distill, **others):
    del others

    def momenta(task, of_distill, v_task, v_distill, parameter):
      has_task, has_distill = jnp.any(task != 0), jnp.any(of_distill != 0)
      only_distill = has_distill & ~has_task
      decay = weight_decay * parameter
      v_task = jnp.where(has_distill, momentum - delta, momentum).astype(task.dtype) * v_task
      v_distill = jnp.where(has_task, momentum + delta, momentum).astype(task.dtype) * v_distill
      return (
        v_task + task + jnp.where(only_distill, 0, decay),
        v_distill + of_distill + jnp.where(only_distill, decay, 0),
      )

    both = jax.tree.map(momenta, updates, distill, state.task, state.distill, params)
    state = DotState(*jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0)), both))
    return jax.tree.map(jnp.add, state.task, state.distill), state

  return optax.GradientTransformationExtraArgs(init, update)
