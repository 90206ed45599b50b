"""Hard-label distillation: the student learns the class that the teacher decides for.

Touvron, Cord, Douze, Massa, Sablayrolles, Jégou, "Training data-efficient image transformers & distillation through
attention", ICML 2021, https://arxiv.org/abs/2012.12877

  L_i = CE(softmax(z_student,i), argmax_c z_teacher,ic)   (the second term of equation 3)

Of several equal largest logits the first decides.

Differences: the paper's loss is half of this and half the cross-entropy with the true label; both weights are here the
stage's. In its transformers a head of its own, on a distillation token, learns from the teacher, and both heads are
averaged at test time; here, as in its equation, both losses act on the same logits.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import contract, numerics


def loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """Cross-entropy with the teacher's decision, per example.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k]; only the place of the largest matters.

  Returns:
    [b], in nats; >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  decision = jnp.argmax(teacher_logits, axis=-1)
  return -numerics.gather_label(jax.nn.log_softmax(numerics.upcast(student_logits)), decision)


def method() -> contract.Method:
  """Hard-label distillation from a single teacher's logits."""

  def check(student, teachers):
    contract.check_same_classes("hard_label", student, contract.single_teacher("hard_label", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits)

  return contract.stateless(loss_fn, check, reads=("logits",))
