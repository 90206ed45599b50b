"""Every teacher: the wrapped method learns from each of several teachers by itself, and the losses are averaged.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850

  L_i = mean_m L_i(student, teacher_m)

A plug-in, for methods that take one teacher. Around KD it is the survey's "MKD", whose public code averages the
divergences from the softened probabilities of the teachers. Their gradient is that of the divergence from the mean of
these probabilities, as in distilling an ensemble.

Differences: the survey does this for KD alone. Around a method that learns or remembers, every teacher has parts of
its own (regressors, memory banks), initialised with a key of its own. All teachers count the same. A method that
takes over a part of its teacher before the first step is refused with more than one teacher.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from smskd_jax.losses import method as _method
from smskd_jax.state import Aux


def mean(losses: Sequence[jax.Array]) -> jax.Array:
  """The mean over teachers.

  Args:
    losses: at least one, each [b].

  Returns:
    [b].
  """
  return jnp.mean(jnp.stack(losses), axis=0)


def method(wrapped: _method.Method, /) -> _method.Method:
  """The mean of the wrapped method's losses over the teachers; its Aux holds one entry a teacher."""

  def init(key, learner, teachers, labels):
    if not teachers:
      raise ValueError("every_teacher: needs at least one teacher, got 0; name it in the stage's teachers")
    if wrapped.adopt is not None and len(teachers) > 1:
      raise ValueError(
        f"every_teacher: the wrapped method takes over a part of its teacher and needs exactly one, got {len(teachers)}"
      )
    of_each = [
      wrapped.init(jax.random.fold_in(key, i), learner, (teacher,), labels)
      for i, teacher in enumerate(teachers)
    ]
    return Aux(params=tuple(aux.params for aux in of_each), state=tuple(aux.state for aux in of_each))

  def apply(params, state, learner, teachers, batch, key, epoch, axis_name):
    of_each = [
      wrapped.apply(
        params[i],
        state[i],
        learner,
        (teacher,),
        batch,
        jax.random.fold_in(key, i),
        epoch,
        axis_name,
        freeze=False,
      )
      for i, teacher in enumerate(teachers)
    ]
    losses, states = zip(*of_each, strict=True)
    return mean(losses), states

  return _method.make(init, apply, wrapped.adopt)
