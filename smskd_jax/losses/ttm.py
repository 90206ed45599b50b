"""Transformed teacher matching: the teacher's probabilities are raised to a power.

Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, https://arxiv.org/abs/2402.11148

  L_i = KL(q_i || softmax(z_student,i))
  q_ic = p_ic^gamma / sum_c' p_ic'^gamma, p = softmax(z_teacher)

The power gamma is a temperature of 1 / gamma for the teacher alone: q = softmax(gamma z_teacher).

Differences: none from the authors' code but that q is computed from logarithms. Its weight beside the cross-entropy
with the label is large and differs from pair to pair; the authors' example for CIFAR-100 has gamma = 0.1 and weight 45.
"""

import chex
import jax

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def loss(student_logits: jax.Array, teacher_logits: jax.Array, *, gamma: float = 0.1) -> jax.Array:
  """KL divergence from the teacher's power-transformed probabilities, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    gamma: the power, > 0; 1 is plain matching of probabilities, less makes the teacher softer.

  Returns:
    [b], in nats; >= 0, and zero where the student's logits are gamma times the teacher's, up to a constant.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  log_q = jax.nn.log_softmax(gamma * numerics.upcast(teacher_logits))
  log_p = jax.nn.log_softmax(numerics.upcast(student_logits))
  return numerics.kl_divergence(log_q, log_p)


def method(*, gamma: float = 0.1) -> contract.Method:
  """TTM from a single teacher's logits."""
  errors.check_positive("ttm", gamma=gamma)

  def check(student, teachers):
    contract.check_same_classes("ttm", student, contract.single_teacher("ttm", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, gamma=gamma)

  return contract.stateless(loss_fn, check, reads=("logits",))
