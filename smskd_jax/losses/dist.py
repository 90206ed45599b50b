"""DIST: correlation with the teacher's probabilities over the classes and over the batch.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022,
https://arxiv.org/abs/2205.10536

  mean_i L_i = T^2 (beta mean_i (1 - r(S_i, T_i)) + gamma mean_c (1 - r(S_c, T_c)))
  r(a, b) = <a', b'> / (|a'| |b'| + eps), a' = a - mean(a), eps = 1e-8   (Pearson's correlation)

S_i and T_i are the softened probabilities of student and teacher for example i, S_c and T_c those of class c for all n
examples of the batch. Example i gets its own term of the first mean (the paper's inter-class relation), and of the
second (the intra-class relation) the share that its entries have in it: but for eps, 1 - r is half the squared distance
of a' / |a'| and b' / |b'|, a sum over the examples. So no L_i is negative, and all are zero where the networks agree.

Differences: the factor T^2 and eps are the authors' code's. Where one of the two is constant (its norm is below 1e-12),
so that there is no correlation, r is zero as in that code but has no gradient, where that code divides by eps alone; a
batch of one example therefore has a constant second term. The batch is the global one, over all devices; that code
takes each device's. The weights are those of that code's CIFAR-100 and ImageNet configurations, which then weigh the
whole by 2 (the paper's beta and gamma are 2). The default T is the CIFAR-100 one; on ImageNet T is 1.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics

_EPS = 1e-8


def _one_minus_correlation(square: jax.Array, norms: jax.Array) -> jax.Array:
  """1 - r from the distance of unit vectors and the product of norms; 1 where that is zero."""
  return (norms * square / 2 + _EPS) / (norms + _EPS)


def _inter_class(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """1 - r over the classes [b], from probabilities [b, k]."""
  student = student - jnp.mean(student, axis=1, keepdims=True)
  teacher = teacher - jnp.mean(teacher, axis=1, keepdims=True)
  norm_s, norm_t = numerics.safe_norm(student), numerics.safe_norm(teacher)
  difference = numerics.safe_divide(student, norm_s[:, None]) - numerics.safe_divide(teacher, norm_t[:, None])
  return _one_minus_correlation(jnp.sum(jnp.square(difference), axis=1), norm_s * norm_t)


def _intra_class(student: jax.Array, teacher: jax.Array, axis_name: str | None) -> jax.Array:
  """Each example's part [b] of 1 - r over the batch, [b, k] to the mean over the classes."""
  k = student.shape[1]
  both = jnp.concatenate([student, teacher], axis=1)
  everyone = contract.gather(both, axis_name)
  mean = jnp.mean(everyone, axis=0, keepdims=True)
  norm = numerics.safe_norm((everyone - mean).T)
  unit = numerics.safe_divide(both - mean, norm[None, :])
  square = everyone.shape[0] * jnp.square(unit[:, :k] - unit[:, k:])
  return jnp.mean(_one_minus_correlation(square, (norm[:k] * norm[k:])[None, :]), axis=1)


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  *,
  beta: float = 1.0,
  gamma: float = 1.0,
  temperature: float = 4.0,
  axis_name: str | None = None,
) -> jax.Array:
  """One minus the correlations between the student's and the teacher's probabilities.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    beta: weight of the correlation over the classes.
    gamma: weight of the correlation over the batch.
    temperature: T > 0.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], >= 0; the mean over the global batch is at most 2 T^2 (beta + gamma).
  """
  chex.assert_rank([student_logits, teacher_logits], 2)
  chex.assert_equal_shape([student_logits, teacher_logits])
  student = jax.nn.softmax(numerics.upcast(student_logits) / temperature)
  teacher = jax.nn.softmax(numerics.upcast(teacher_logits) / temperature)
  inter, intra = _inter_class(student, teacher), _intra_class(student, teacher, axis_name)
  return temperature**2 * (beta * inter + gamma * intra)


def method(*, beta: float = 1.0, gamma: float = 1.0, temperature: float = 4.0) -> contract.Method:
  """DIST from a single teacher's logits."""
  errors.check_non_negative("dist", beta=beta, gamma=gamma)
  errors.check_positive("dist", temperature=temperature)

  def check(student, teachers):
    contract.check_same_classes("dist", student, contract.single_teacher("dist", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(
      student.logits,
      teacher.logits,
      beta=beta,
      gamma=gamma,
      temperature=temperature,
      axis_name=context.axis_name,
    )

  return contract.stateless(loss_fn, check, reads=("logits",))
