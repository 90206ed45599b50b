"""Knowledge distillation: the student matches the teacher's softened probabilities.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531

  L_i = T^2 KL(softmax(z_teacher,i / T) || softmax(z_student,i / T))

The factor T^2 keeps the size of the gradient independent of T (section 2.1). Difference: the paper minimises
the cross entropy with the teacher's probabilities; the divergence differs from it by the teacher's entropy, a
constant, and so has the same gradient and is zero where the networks agree.
"""

import chex
import jax

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def loss(student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float = 4.0) -> jax.Array:
  """KL divergence from the teacher's to the student's softened probabilities, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    temperature: T > 0. The CIFAR-100 literature uses 4, the ImageNet literature 1.

  Returns:
    [b], in nats times T^2; >= 0, and zero where the logits agree up to a constant.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  log_p = jax.nn.log_softmax(numerics.upcast(teacher_logits) / temperature)
  log_q = jax.nn.log_softmax(numerics.upcast(student_logits) / temperature)
  return temperature**2 * numerics.kl_divergence(log_p, log_q)


def method(*, temperature: float = 4.0) -> contract.Method:
  """KD from a single teacher's logits."""
  errors.check_positive("kd", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("kd", student, contract.single_teacher("kd", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",))
