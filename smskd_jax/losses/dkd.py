"""Decoupled knowledge distillation: separate weights of the label and the other classes.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022, https://arxiv.org/abs/2203.08679

  L_i = T^2 (alpha KL(b_teacher,i || b_student,i) + beta KL(q_teacher,i || q_student,i))
  b = (p_y, 1 - p_y), p = softmax(z / T)
  q = softmax(z_c / T) over the classes c other than the label y

b weighs the label y against all other classes together, q compares the others among each other. With two classes q is
a single 1 and the second term exactly zero. With alpha = 1 and beta = 1 - p_y of the teacher, the loss is that of `kd`.

Differences: the factor T^2 is the authors' code's. There q is a softmax over all classes after 1000 has been taken
from the label's z / T, and the probabilities are formed before their logarithms are taken; here the label is left out
and all is computed from logarithms, so that no logits are too large. The authors raise the weight of this loss
linearly from zero over the first 20 epochs (1 on ImageNet); their numbers depend on it, and it belongs to the stage.
So do the published beta: 8 by default, 6 or 2 for some pairs of networks, with T = 4; 0.5 or 2 on ImageNet with T = 1.
"""

import chex
import jax

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: float = 4.0,
) -> jax.Array:
  """Weighted sum of the divergences on the label and among the other classes, per example.

  Args:
    student_logits: [b, k], k >= 2.
    teacher_logits: [b, k].
    labels: [b], integers.
    alpha: weight of the label against all other classes.
    beta: weight of the classes other than the label.
    temperature: T > 0.

  Returns:
    [b], in nats times T^2; >= 0, and zero where the logits agree up to a constant.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(labels, student_logits.shape[:1])
  student = numerics.upcast(student_logits) / temperature
  teacher = numerics.upcast(teacher_logits) / temperature
  is_label = numerics.class_mask(labels[:, None], student.shape[-1])
  on_label = numerics.kl_divergence(
    numerics.log_split(teacher, is_label), numerics.log_split(student, is_label)
  )
  among_others = numerics.kl_divergence(
    numerics.log_softmax_without_label(teacher, labels), numerics.log_softmax_without_label(student, labels)
  )
  return temperature**2 * (alpha * on_label + beta * among_others)


def method(*, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> contract.Method:
  """DKD from a single teacher's logits and the labels."""
  errors.check_non_negative("dkd", alpha=alpha, beta=beta)
  errors.check_positive("dkd", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("dkd", student, contract.single_teacher("dkd", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(
      student.logits, teacher.logits, context.batch.label, alpha=alpha, beta=beta, temperature=temperature
    )

  return contract.stateless(loss_fn, check, reads=("logits",), needs_labels=True)
