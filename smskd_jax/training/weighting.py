"""Weights of the reference term, image by image. Pure.

The paper weights it by the reference's true-class probability (TCP; its abstract says the teacher's) and names other
weightings as future work. Each of these depends on the probabilities of the networks; all but the learned one are in
[0, 1]. A large weight keeps the student close to its reference.

constant                            1
reference_tcp                       the reference's TCP, Eq. 9 of the paper: more where the reference is right
one_minus_reference_tcp             less where the reference is right
shuffled_reference_tcp              the reference's TCP of another image of the batch: the same weights, on wrong images
teacher_tcp                         the teacher's TCP, as the paper's abstract has it
one_minus_teacher_tcp               less where the teacher is right: the default of versions before 0.2
shuffled_one_minus_teacher_tcp      1 - the teacher's TCP of another image of the batch
teacher_entropy                     the teacher's entropy over log k
one_minus_teacher_margin            1 - (the teacher's largest probability - its second)
teacher_reference_disagreement      the total variation between teacher and reference
teacher_reference_agreement         1 - that
learned_teacher_tcp                 exp(-s_i), s_i = a + b TCP_i of the teacher, a and b learned, and s_i added to the
                                    loss: without it the weights would fall to zero. As Kendall, Gal, Cipolla,
                                    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
                                    Semantics", CVPR 2018, https://arxiv.org/abs/1705.07115, do for tasks.

b batch, k classes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import gather, local_offset

LEARNED = "learned_teacher_tcp"  # its parameters are the stage's: see training/reference.py


class WeightingInputs(NamedTuple):
  """Probabilities that a weight may depend on."""

  teacher_tcp: jax.Array  # [b], the mean over teachers
  reference_tcp: jax.Array  # [b]
  teacher: jax.Array  # [b, k], the mean of the teachers' probabilities
  reference: jax.Array  # [b, k], the reference's
  key: jax.Array  # the same on all devices
  axis_name: str | None = None


def _teacher_entropy(inputs: WeightingInputs) -> jax.Array:
  p = inputs.teacher
  return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1) / jnp.log(p.shape[-1])


def _teacher_margin(inputs: WeightingInputs) -> jax.Array:
  top_two, _ = jax.lax.top_k(inputs.teacher, 2)
  return top_two[:, 0] - top_two[:, 1]


def _disagreement(inputs: WeightingInputs) -> jax.Array:
  return jnp.sum(jnp.abs(inputs.teacher - inputs.reference), axis=-1) / 2


def _shuffle(values: jax.Array, inputs: WeightingInputs) -> jax.Array:
  """Values [b] of the global batch in a random order, the same however the batch is split over devices."""
  global_values = gather(values, inputs.axis_name)
  order = jax.random.permutation(inputs.key, len(global_values))
  b = len(values)
  return global_values[jax.lax.dynamic_slice_in_dim(order, local_offset(b, inputs.axis_name), b)]


WEIGHTINGS: Mapping[str, Callable[[WeightingInputs], jax.Array]] = MappingProxyType(
  {
    "constant": lambda inputs: jnp.ones_like(inputs.reference_tcp),
    "reference_tcp": lambda inputs: inputs.reference_tcp,
    "one_minus_reference_tcp": lambda inputs: 1 - inputs.reference_tcp,
    "shuffled_reference_tcp": lambda inputs: _shuffle(inputs.reference_tcp, inputs),
    "teacher_tcp": lambda inputs: inputs.teacher_tcp,
    "one_minus_teacher_tcp": lambda inputs: 1 - inputs.teacher_tcp,
    "shuffled_one_minus_teacher_tcp": lambda inputs: _shuffle(1 - inputs.teacher_tcp, inputs),
    "teacher_entropy": _teacher_entropy,
    "one_minus_teacher_margin": lambda inputs: 1 - _teacher_margin(inputs),
    "teacher_reference_disagreement": _disagreement,
    "teacher_reference_agreement": lambda inputs: 1 - _disagreement(inputs),
    LEARNED: lambda inputs: jnp.ones_like(inputs.teacher_tcp),
  }
)
# Those that need no teacher.
TEACHER_FREE = frozenset({"constant", "reference_tcp", "one_minus_reference_tcp", "shuffled_reference_tcp"})
