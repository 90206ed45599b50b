"""Logit regression: the student's logits approach the teacher's in squared error.

Ba, Caruana, "Do Deep Nets Really Need to be Deep?", NeurIPS 2014, https://arxiv.org/abs/1312.6184

  L_i = mean_c (z_student,ic - z_teacher,ic)^2

Differences: the paper takes half the sum over the classes where this module takes the mean, as the public code of
Knowledge-Distillation-Zoo does: a factor of k / 2 for k classes, which the weight has to make up for. The paper trains
on the logits alone, in that code the loss joins the cross-entropy with the label (weight 0.1).
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import contract, numerics


def loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """Mean squared error of the logits, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].

  Returns:
    [b]; zero where the logits are equal. A constant added to all logits counts, unlike in `kd`.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  return jnp.mean(jnp.square(numerics.upcast(student_logits) - numerics.upcast(teacher_logits)), axis=-1)


def method() -> contract.Method:
  """Regression of a single teacher's logits."""

  def check(student, teachers):
    contract.check_same_classes("logits_mse", student, contract.single_teacher("logits_mse", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits)

  return contract.stateless(loss_fn, check, reads=("logits",))
