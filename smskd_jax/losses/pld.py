"""Plackett-Luce distillation: the student learns the teacher's order of the classes.

Bassam, Zhu, Bian, "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", NeurIPS 2025,
https://arxiv.org/abs/2506.12542

  L_i = sum_r q_r (log sum_{s >= r} exp(z_student,i pi_s) - z_student,i pi_r)
  pi = (y, then the other classes by falling z_teacher,i), q_r = softmax(z_teacher,i / T) of class pi_r

Each summand is the cross-entropy of choosing class pi_r among the classes of ranks r and below: the Plackett-Luce
model of the ranking pi, with the student's logits as worths. The first is the cross-entropy with the label, weighted
by the teacher's probability of the label.

The loss takes the place of the cross-entropy: the stage has `task_weight` = 0 and the method a weight of 1.

Differences: none in the formula. The temperature softens the teacher's weights only, as in the code printed in the
paper's appendix; there is no factor T^2. Classes of equal logits of the teacher are ranked by their number. The
default T = 4 is the paper's for CIFAR-100 (AdamW, 250 epochs); on ImageNet it takes 1.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def ranking(teacher_logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Ranking [b, k] of the classes: the label, then the others by falling logits [b, k]."""
  is_label = numerics.class_mask(labels[:, None], teacher_logits.shape[-1])
  key = jnp.where(is_label, jnp.inf, numerics.upcast(teacher_logits))
  return jnp.argsort(key, axis=-1, stable=True, descending=True)


def loss(
  student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
  """Negative log-likelihood of the ranking, each rank weighted by the teacher, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    labels: [b], integers.
    temperature: T > 0, of the teacher's weights.

  Returns:
    [b], in nats; >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(labels, student_logits.shape[:1])
  order = ranking(teacher_logits, labels)
  weights = jax.nn.softmax(numerics.upcast(teacher_logits) / temperature)
  weights, student = (
    jnp.take_along_axis(x, order, axis=-1) for x in (weights, numerics.upcast(student_logits))
  )
  log_sums = jax.lax.cumlogsumexp(student, axis=1, reverse=True)
  return jnp.sum(weights * (log_sums - student), axis=-1)


def method(*, temperature: float = 4.0) -> contract.Method:
  """PLD from a single teacher's logits and the labels."""
  errors.check_positive("pld", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("pld", student, contract.single_teacher("pld", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, context.batch.label, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",), needs_labels=True)
