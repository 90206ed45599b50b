"""Refined logit distillation: the teacher's confidence, and its order below the label.

Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits", ICCV 2025,
https://arxiv.org/abs/2408.07703

  L_i = alpha A^2 KL((m, 1 - m) || (p_iy, 1 - p_iy)) + beta T^2 KL(q_teacher,i || q_student,i)
  m = max_c softmax(z_teacher,i / A)_c, p_i = softmax(z_student,i / A)      (sample confidence)
  q = softmax(z_c / T) over the classes c with z_teacher,ic < z_teacher,iy  (masked correlation)

The student's probability of the label y follows the teacher's largest probability, whichever class has it. The second
term leaves out the label and every class that the teacher ranks as high or higher; it is zero, without a gradient,
where one class or none is left. Where the teacher is right about every image, the loss is that of `dkd`.

Differences: the paper has one temperature; the authors' code has one of its own for the first term,
`alpha_temperature`, which is equal to T = 4 in the command of its README and 1 in its default configuration. All is
computed from logarithms; that code forms probabilities first, and fills left-out logits with -1e9. Logits of the
teacher that differ by rounding errors alone count as equal. Weights and temperatures are those of that command; the
authors raise the weight of the loss linearly from zero over the first 20 epochs (1 on ImageNet), which belongs to the
stage. On ImageNet both temperatures are 1, and beta is 0.5 (ResNet-34 to ResNet-18) or 2 (ResNet-50 to MobileNet).
With `logit_standardization` the ranking is that of the z-scores, as in that code, whose weight is then 9 with
temperatures of 2.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def confidence_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
  """KL divergence of the label's probability from the teacher's largest, per example.

  Args:
    student_logits: [b, k], k >= 2.
    teacher_logits: [b, k].
    labels: [b], integers.
    temperature: A > 0.

  Returns:
    [b], in nats times A^2; >= 0.
  """
  student, teacher = numerics.upcast(student_logits), numerics.upcast(teacher_logits)
  k = student.shape[-1]
  is_largest = numerics.class_mask(jnp.argmax(teacher, axis=-1, keepdims=True), k)
  log_b_teacher = numerics.log_split(teacher / temperature, is_largest)
  log_b_student = numerics.log_split(student / temperature, numerics.class_mask(labels[:, None], k))
  return temperature**2 * numerics.kl_divergence(log_b_teacher, log_b_student)


def masked_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, *, temperature: float = 4.0
) -> jax.Array:
  """KL divergence among the classes that the teacher ranks below the label, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    labels: [b], integers.
    temperature: T > 0.

  Returns:
    [b], in nats times T^2; >= 0, and zero where one class or none is left.
  """
  student, teacher = numerics.upcast(student_logits), numerics.upcast(teacher_logits)
  # A compiler may compute one logit twice, with another rounding: the label is not below itself.
  rounding = 4 * jnp.finfo(teacher.dtype).eps * jnp.max(jnp.abs(teacher), axis=-1)
  is_below = teacher < (numerics.gather_label(teacher, labels) - rounding)[:, None]
  log_q_teacher = numerics.log_softmax_within(teacher / temperature, is_below)
  log_q_student = numerics.log_softmax_within(student / temperature, is_below)
  return temperature**2 * numerics.kl_divergence(log_q_teacher, log_q_student)


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: float = 4.0,
  alpha_temperature: float = 4.0,
) -> jax.Array:
  """Weighted sum of `confidence_loss` and `masked_loss`, per example.

  Args:
    student_logits: [b, k], k >= 2.
    teacher_logits: [b, k].
    labels: [b], integers.
    alpha: weight of the sample confidence.
    beta: weight of the masked correlation.
    temperature: T > 0, of the masked correlation.
    alpha_temperature: A > 0, of the sample confidence.

  Returns:
    [b], >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(labels, student_logits.shape[:1])
  confidence = confidence_loss(student_logits, teacher_logits, labels, temperature=alpha_temperature)
  masked = masked_loss(student_logits, teacher_logits, labels, temperature=temperature)
  return alpha * confidence + beta * masked


def method(
  *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, alpha_temperature: float = 4.0
) -> contract.Method:
  """RLD from a single teacher's logits and the labels."""
  errors.check_non_negative("rld", alpha=alpha, beta=beta)
  errors.check_positive("rld", temperature=temperature, alpha_temperature=alpha_temperature)

  def check(student, teachers):
    contract.check_same_classes("rld", student, contract.single_teacher("rld", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(
      student.logits,
      teacher.logits,
      context.batch.label,
      alpha=alpha,
      beta=beta,
      temperature=temperature,
      alpha_temperature=alpha_temperature,
    )

  return contract.stateless(loss_fn, check, reads=("logits",), needs_labels=True)
