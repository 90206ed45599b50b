"""Patient knowledge distillation: maps of all stages approach the teacher's.

Sun, Cheng, Gan, Liu, "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019,
https://arxiv.org/abs/1908.09355

  L_i = beta / m |v_student,i - v_teacher,i|^2

v is the vector of m numbers that holds the maps of all layers one after another, so that a large map counts for more
than a small one. This is the method as the survey "The State of Knowledge Distillation for Classification" (Ruffy,
Chahal, 2019, https://arxiv.org/abs/1912.10850) carried it over to images, with its beta of 10; it adds plain
knowledge distillation, which here is a second method of the stage.

Differences: the paper compares the hidden states of a language model's first token, layer by layer and each of unit
length; the survey's code compares whole maps, and does not normalise. Between networks of equal shapes there is no
difference from that code: its mean over all numbers and images of the squared differences is the mean of L_i, and its
maps are the outputs of the stages after their activation, without the stem's, as by default here. It needs equal
shapes. Here the larger map of a pair is averaged down to the smaller one and, only where the channels differ, a learned
1x1 convolution takes the student's to the teacher's.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, maps, numerics


def loss(
  student_features: Sequence[jax.Array], teacher_features: Sequence[jax.Array], *, beta: float = 10.0
) -> jax.Array:
  """Mean squared difference over all numbers of all maps, per example.

  Args:
    student_features: maps [b, h, w, c] of any shapes.
    teacher_features: equally many, of the same shapes.
    beta: a factor, part of the survey's definition.

  Returns:
    [b].
  """
  pairs = list(zip(student_features, teacher_features, strict=True))
  for student, teacher in pairs:
    chex.assert_rank([student, teacher], 4)
    chex.assert_equal_shape([student, teacher])
  squares = [jnp.square(numerics.upcast(student) - numerics.upcast(teacher)) for student, teacher in pairs]
  count = sum(x[0].size for x in squares)
  return beta / count * jnp.sum(jnp.stack([jnp.sum(x, axis=(1, 2, 3)) for x in squares]), axis=0)


def method(
  *, beta: float = 10.0, student_layers: tuple[int, ...] = (), teacher_layers: tuple[int, ...] = ()
) -> contract.Method:
  """PKD at all feature layers but the stem, or at the given ones."""
  errors.check_non_negative("pkd", beta=beta)
  maps.check_layers("pkd", student_layers, teacher_layers)

  def matched(student, teacher):
    return maps.match_layers("pkd", student, teacher, student_layers, teacher_layers)

  def projections(teacher_maps):
    return adapters.Projections(tuple(x.shape[-1] for x in teacher_maps))

  def init(key, student, teachers, labels):
    del labels
    students, teacher_maps = jax.eval_shape(matched, student, contract.single_teacher("pkd", teachers))
    return adapters.init(projections(teacher_maps), key, students)

  def apply(params, state, student, teachers, context):
    students, teacher_maps = matched(student, *teachers)
    students, state = adapters.apply(
      projections(teacher_maps), params, state, students, axis_name=context.axis_name
    )
    return loss(students, teacher_maps, beta=beta), state

  return contract.make(init, apply, reads=("features",), learns="projections where channels differ")
