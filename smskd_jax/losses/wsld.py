"""Weighted soft labels: less weight where the student is better than the teacher.

Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
Perspective", ICLR 2021, https://arxiv.org/abs/2102.00650

  L_i = w_i T^2 H(softmax(z_teacher,i / T), softmax(z_student,i / T))
  w_i = 1 - exp(-CE_student,i / (CE_teacher,i + eps)), eps = 1e-7

H is the cross-entropy, CE the cross-entropy of a network with the label, at T = 1. No gradient goes through w_i, which
is near 1 where the teacher is much better than the student. Where the teacher is certain and right, eps keeps the
quotient finite, and where the student is so too, w_i is 0.

Differences: none from the authors' code; eps is that code's. H, unlike the divergence of `kd`, is not zero where the
networks agree; the gradient is the same. The default T is that of a public CIFAR-100 configuration, which has weight
2.25 (in the code of "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023); the authors' own code,
for ImageNet, has T = 2 and weight 2.5.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics

_EPS = 1e-7


def weight(student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The weights [b] of examples, from 0 to 1, as constants; arguments as in `loss`."""
  student, teacher = (
    -numerics.gather_label(jax.nn.log_softmax(numerics.upcast(logits)), labels)
    for logits in (student_logits, teacher_logits)
  )
  return jax.lax.stop_gradient(-jnp.expm1(-student / (teacher + _EPS)))


def loss(
  student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
  """Weighted cross-entropy with the teacher's softened probabilities, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    labels: [b], integers.
    temperature: T > 0.

  Returns:
    [b], in nats times T^2; >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(labels, student_logits.shape[:1])
  p = jax.nn.softmax(numerics.upcast(teacher_logits) / temperature)
  log_q = jax.nn.log_softmax(numerics.upcast(student_logits) / temperature)
  soft = -jnp.sum(p * log_q, axis=-1)
  return temperature**2 * weight(student_logits, teacher_logits, labels) * soft


def method(*, temperature: float = 4.0) -> contract.Method:
  """WSLD from a single teacher's logits and the labels."""
  errors.check_positive("wsld", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("wsld", student, contract.single_teacher("wsld", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, context.batch.label, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",), needs_labels=True)
