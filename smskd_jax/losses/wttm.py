"""Weighted transformed teacher matching: TTM with more weight on smoother teachers.

Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, https://arxiv.org/abs/2402.11148

  L_i = U_i KL(q_i || softmax(z_student,i))
  U_i = sum_c p_ic^gamma, q_ic = p_ic^gamma / U_i, p = softmax(z_teacher)

The divergence is that of `ttm`. For gamma < 1 the weight U_i is 1 where the teacher is certain and grows up to
k^(1 - gamma) where it gives all k classes the same probability.

Differences: none from the authors' code but that all is computed from logarithms. The weight of the loss differs from
pair to pair; the authors' example for CIFAR-100, together with contrastive distillation, has gamma = 0.2 and weight 4.
"""

import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics, ttm


def weight(teacher_logits: jax.Array, *, gamma: float = 0.2) -> jax.Array:
  """Sums [b] of the teacher's probabilities raised to the power gamma, of logits [b, k]."""
  log_p = jax.nn.log_softmax(numerics.upcast(teacher_logits))
  return jnp.exp(jax.nn.logsumexp(gamma * log_p, axis=-1))


def loss(student_logits: jax.Array, teacher_logits: jax.Array, *, gamma: float = 0.2) -> jax.Array:
  """Weighted KL divergence from the power-transformed teacher, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    gamma: the power, > 0; less makes the teacher softer and its weights more different.

  Returns:
    [b]; >= 0, and zero where the student's logits are gamma times the teacher's, up to a constant.
  """
  return weight(teacher_logits, gamma=gamma) * ttm.loss(student_logits, teacher_logits, gamma=gamma)


def method(*, gamma: float = 0.2) -> contract.Method:
  """WTTM from a single teacher's logits."""
  errors.check_positive("wttm", gamma=gamma)

  def check(student, teachers):
    contract.check_same_classes("wttm", student, contract.single_teacher("wttm", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, gamma=gamma)

  return contract.stateless(loss_fn, check, reads=("logits",))
