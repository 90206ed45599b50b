"""Teacher-free knowledge distillation: a virtual teacher, nearly always correct.

Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
https://arxiv.org/abs/1909.11723

  L_i = KL(u_i || softmax(z_student,i))
  u_i = softmax(p_i / T), p_ic = a for the label c = y, (1 - a) / (k - 1) for the k - 1 other classes   (Tf-KD_reg)

No teacher is needed: the method takes any number of them, and reads none.

Differences: the paper speaks of p softened by a temperature. We follow the authors' code, where the softmax is taken of
the probabilities p themselves and not of their logarithms: u is then nearly uniform (with a = 0.99, T = 20 and 100
classes the label has 0.0105), as from heavy label smoothing. As there the student has no temperature, and there is no
factor T^2. That code averages over the classes as well as the batch and multiplies by a number chosen for each network;
here it is the sum over the classes, which with 100 classes is its multiplier of 100 (its ResNet-18 on CIFAR-100, T =
20). Other networks have other multipliers and T there (GoogLeNet 50 and 40, MobileNetV2 1 and 40). Published numbers
depend on them, and on the weights: alpha for this loss and 1 - alpha for the cross-entropy, with alpha 0.1 (ResNet-18
and GoogLeNet) or 0.95 (MobileNetV2).
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def log_target(labels: jax.Array, num_classes: int, *, correct: float, temperature: float) -> jax.Array:
  """Log-probabilities [b, num_classes] of the softened virtual teacher, of labels [b]."""
  is_label = labels[:, None] == jnp.arange(num_classes)[None, :]
  return jax.nn.log_softmax(jnp.where(is_label, correct, (1 - correct) / (num_classes - 1)) / temperature)


def loss(
  student_logits: jax.Array, labels: jax.Array, *, correct: float = 0.99, temperature: float = 20.0
) -> jax.Array:
  """KL divergence from the made-up teacher's to the student's probabilities, per example.

  Args:
    student_logits: [b, k], k >= 2.
    labels: [b], integers.
    correct: a, from 0 to 1, the virtual teacher's probability of the label before softening; in the paper at least 0.9.
    temperature: T > 0, of the made-up teacher.

  Returns:
    [b], in nats; >= 0.
  """
  chex.assert_rank(student_logits, 2)
  chex.assert_shape(labels, student_logits.shape[:1])
  log_q = jax.nn.log_softmax(numerics.upcast(student_logits))
  target = log_target(labels, student_logits.shape[1], correct=correct, temperature=temperature)
  return numerics.kl_divergence(target.astype(log_q.dtype), log_q)


def method(*, correct: float = 0.99, temperature: float = 20.0) -> contract.Method:
  """Tf-KD_reg from the labels; teachers, if there are any, are ignored."""
  errors.check_unit_interval("tfkd", correct=correct)
  errors.check_positive("tfkd", temperature=temperature)

  def loss_fn(student, teachers, context):
    del teachers
    return loss(student.logits, context.batch.label, correct=correct, temperature=temperature)

  return contract.stateless(loss_fn, reads=(), student_reads=("logits",), needs_labels=True)
