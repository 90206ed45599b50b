"""Generalized decoupled knowledge distillation: weights of the teacher's top classes.

Zheng, Cheng, "Rethinking Decoupled Knowledge Distillation: A Predictive Distribution Perspective", 2025,
IEEE Transactions on Neural Networks and Learning Systems, https://arxiv.org/abs/2512.04625

  L_i = T^2 (w0 KL(b_teacher,i || b_student,i) + w1 KL(q_teacher,i || q_student,i) + w2 KL(r_teacher,i || r_student,i))
  b = (sum_{c in top} p_c, sum_{c not in top} p_c), p = softmax(z / T)
  q, r = softmax(z_c / T) over the classes c in and not in top

top are the k classes of the teacher's largest logits for image i. The loss is `dkd`'s with these classes in the place
of the label, which is not read. With k classes or fewer in the data, all are in top, and the loss is w1 times that of
`kd`.

Differences: all is computed from logarithms, and left-out classes are left out, where the authors' code forms
probabilities first and takes 1000 from left-out logits z / T. Of equal logits the first class counts as the larger.
The default weights are those of its configuration for resnet32x4 -> resnet8x4; the other pairs have w1 and w2 of 1 to
8, and ImageNet w0 = 0.5 with T = 1. The authors raise the weight of this loss linearly from zero over the first 20
epochs (1 on ImageNet), which belongs to the stage.
"""

import chex
import jax

from smskd_jax import errors
from smskd_jax.losses import contract, kd, numerics


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  k: int = 5,
  w0: float = 1.0,
  w1: float = 2.0,
  w2: float = 8.0,
  temperature: float = 4.0,
) -> jax.Array:
  """Weighted divergences between and within the top and the other classes, per example.

  Args:
    student_logits: [batch, classes].
    teacher_logits: [batch, classes].
    k: number of top classes, >= 1.
    w0: weight of the top classes against all others.
    w1: weight of the comparison within the top classes.
    w2: weight of the comparison within the other classes.
    temperature: T > 0.

  Returns:
    [batch], in nats times T^2; >= 0, and zero where the logits agree up to a constant.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  if k >= student_logits.shape[-1]:
    return w1 * kd.loss(student_logits, teacher_logits, temperature=temperature)
  student, teacher = numerics.upcast(student_logits), numerics.upcast(teacher_logits)
  is_top = numerics.class_mask(jax.lax.top_k(teacher, k)[1], teacher.shape[-1])
  student, teacher = student / temperature, teacher / temperature
  between = numerics.kl_divergence(numerics.log_split(teacher, is_top), numerics.log_split(student, is_top))
  within_top, within_others = (
    numerics.kl_divergence(
      numerics.log_softmax_within(teacher, mask), numerics.log_softmax_within(student, mask)
    )
    for mask in (is_top, ~is_top)
  )
  return temperature**2 * (w0 * between + w1 * within_top + w2 * within_others)


def method(
  *, k: int = 5, w0: float = 1.0, w1: float = 2.0, w2: float = 8.0, temperature: float = 4.0
) -> contract.Method:
  """GDKD from a single teacher's logits."""
  errors.check_positive_integer("gdkd", k=k)
  errors.check_non_negative("gdkd", w0=w0, w1=w1, w2=w2)
  errors.check_positive("gdkd", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("gdkd", student, contract.single_teacher("gdkd", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, k=k, w0=w0, w1=w1, w2=w2, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",))
