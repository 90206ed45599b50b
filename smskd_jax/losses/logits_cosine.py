"""Cosine of the logits: the student's logits point where the teacher's do.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850

  L_i = 1 - cos(z_student,i, z_teacher,i)

cos is the cosine of the angle between the two rows of logits: their length does not count, a constant added to all
logits does. The survey's tables do not have it. Its public code, https://github.com/karanchahal/distiller, has it as
the mode `triplet`, and documents a triplet loss with the student as the negative example. There are no triplets in it:
what it computes is PyTorch's cosine embedding loss with a target of 1 for every image, without negatives. It stands
there in the place of the cross-entropy, with a weight of 0.5, beside KD of weight 0.5 at temperature 5, so that no
label is read at all.

Differences: logits of length 0 have the loss 1, as in PyTorch, and a gradient of zero, where PyTorch's is about a
million times the teacher's direction.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import contract, numerics


def loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """One minus the cosine between the logits, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].

  Returns:
    [b], from 0 to 2; zero where the student's logits are a positive multiple of the teacher's.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  return 1 - jnp.sum(_direction(student_logits) * _direction(teacher_logits), axis=-1)


def _direction(logits: jax.Array) -> jax.Array:
  """The logits at length 1; zeros where they have none."""
  logits = numerics.upcast(logits)
  return numerics.safe_divide(logits, numerics.safe_norm(logits)[:, None])


def method() -> contract.Method:
  """The cosine between the student's logits and a single teacher's."""

  def check(student, teachers):
    contract.check_same_classes("logits_cosine", student, contract.single_teacher("logits_cosine", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits)

  return contract.stateless(loss_fn, check, reads=("logits",))
