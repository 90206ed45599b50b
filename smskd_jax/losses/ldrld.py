"""Local dense relational logit distillation: pairs of the student's top classes.

Xu, Liu, Liu, Wang, Xu, Cheng, "Local Dense Logit Relations for Enhanced Knowledge Distillation", ICCV 2025,
https://arxiv.org/abs/2507.15911

  L_i = T^2 (alpha (KL_top + sum_{m < n <= k} w_mn KL_mn) / (1 + k (k - 1) / 2) + beta KL_rest)
  w_mn = 2 exp(-0.05 (m + n)) / (1.5 + n - m)

Classes are ranked by the student's logits for image i, 1 being the largest. KL_mn = KL(q_teacher,i || q_student,i)
with q = softmax(z_c / T) over the classes of ranks m and n alone; KL_top is the same over the classes of ranks 1 to k,
KL_rest over all others. No gradient passes through the ranking. With k classes or fewer in the data, KL_rest is zero.

Differences: constants and the factor T^2 are those of the authors' code, which ranks by the student and has no
warm-up. All is computed from logarithms, and left-out classes are left out, where that code takes 1000 from left-out
logits z / T. The pairs are differences of two logits, not k (k - 1) / 2 arrays of all classes. Of equal logits the
first class counts as the larger. The default weights are those of its command for resnet32x4 -> resnet8x4.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.losses import contract, kd, numerics


def _pair_weights(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """w_mn of pairs of ranks, counted from 0."""
  return 2 * np.exp(-0.05 * (first + second + 2)) / (1.5 + second - first)


def pair_loss(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
  """Weighted sum of the divergences on all pairs of classes, per example.

  Args:
    student_logits: [batch, k], divided by the temperature, the largest first.
    teacher_logits: [batch, k], of the same classes.

  Returns:
    [batch]; zero for a single class.
  """
  first, second = np.triu_indices(student_logits.shape[-1], 1)
  student, teacher = (x[:, first] - x[:, second] for x in (student_logits, teacher_logits))
  log_p, log_q = (
    jnp.stack([jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)], axis=-1) for x in (teacher, student)
  )
  weights = jnp.asarray(_pair_weights(first, second), student.dtype)
  return jnp.sum(weights[None, :] * numerics.kl_divergence(log_p, log_q), axis=1)


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  alpha: float = 10.5,
  beta: float = 7.0,
  k: int = 7,
  temperature: float = 4.0,
) -> jax.Array:
  """Weighted divergences on the student's top classes and on the others, per example.

  Args:
    student_logits: [batch, classes].
    teacher_logits: [batch, classes].
    alpha: weight of the top classes, together and in pairs.
    beta: weight of the other classes.
    k: number of top classes, >= 1.
    temperature: T > 0.

  Returns:
    [batch], in nats times T^2; >= 0, and zero where the logits agree up to a constant.
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  k = min(k, student_logits.shape[-1])
  student = numerics.upcast(student_logits) / temperature
  teacher = numerics.upcast(teacher_logits) / temperature
  _, index = jax.lax.top_k(jax.lax.stop_gradient(student), k)
  top_student, top_teacher = (jnp.take_along_axis(x, index, axis=-1) for x in (student, teacher))
  top = kd.loss(top_student, top_teacher, temperature=1.0) + pair_loss(top_student, top_teacher)
  is_rest = ~numerics.class_mask(index, student.shape[-1])
  rest = numerics.kl_divergence(
    numerics.log_softmax_within(teacher, is_rest), numerics.log_softmax_within(student, is_rest)
  )
  return temperature**2 * (alpha * top / (1 + k * (k - 1) // 2) + beta * rest)


def method(
  *, alpha: float = 10.5, beta: float = 7.0, k: int = 7, temperature: float = 4.0
) -> contract.Method:
  """LDRLD from a single teacher's logits."""
  errors.check_non_negative("ldrld", alpha=alpha, beta=beta)
  errors.check_positive_integer("ldrld", k=k)
  errors.check_positive("ldrld", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("ldrld", student, contract.single_teacher("ldrld", teachers))

  def loss_fn(student, teachers, context):
    del context
    (teacher,) = teachers
    return loss(student.logits, teacher.logits, alpha=alpha, beta=beta, k=k, temperature=temperature)

  return contract.stateless(loss_fn, check, reads=("logits",))
