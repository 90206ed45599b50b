"""Normalized knowledge distillation: soft label, and normalized other classes.

Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
Normalized Loss and Customized Soft Labels", ICCV 2023, https://arxiv.org/abs/2303.13005

  L_i = -p_teacher,iy log p_student,iy - gamma T^2 sum_{c != y} q_teacher,ic log q_student,ic
  p = softmax(z), q = softmax(z_c / T) over the classes c other than the label y

Both terms are cross-entropies, as in the paper: where the networks agree the second has no gradient, but the loss is
not zero, and the first always raises the label's logit. With two classes q is a single 1 and the second term zero.

Differences: the paper's loss also holds the cross-entropy with the label, which here is the stage's. As in the authors'
code only the second term has a temperature, and its square as a factor. The defaults are those of that code's
CIFAR-100 configuration (ResNet-34 to ResNet-18); its ImageNet configurations have gamma = 1.5 and T = 1.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  gamma: float = 3.5,
  temperature: float = 3.0,
) -> jax.Array:
  """Cross-entropies with the teacher on the label and among the other classes, per example.

  Args:
    student_logits: [b, k], k >= 2.
    teacher_logits: [b, k].
    labels: [b], integers.
    gamma: weight of the classes other than the label.
    temperature: T > 0, of these classes.

  Returns:
    [b], >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_shape(labels, student_logits.shape[:1])
  student, teacher = numerics.upcast(student_logits), numerics.upcast(teacher_logits)
  p_label = numerics.gather_label(jax.nn.softmax(teacher), labels)
  on_label = -p_label * numerics.gather_label(jax.nn.log_softmax(student), labels)
  q_teacher = jnp.exp(numerics.log_softmax_without_label(teacher / temperature, labels))
  log_q_student = numerics.log_softmax_without_label(student / temperature, labels)
  among_others = -jnp.sum(q_teacher * log_q_student, axis=-1)
  return on_label + gamma * temperature**2 * among_others


def method(*, gamma: float = 3.5, temperature: float = 3.0) -> contract.Method:
  """NKD from a single teacher's logits and the labels."""
  errors.check_non_negative("nkd", gamma=gamma)
  errors.check_positive("nkd", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("nkd", student, contract.single_teacher("nkd", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, context.batch.label, gamma=gamma, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",), needs_labels=True)
