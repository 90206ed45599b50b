"""Information theoretic representation distillation: correlation and mutual information.

Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation", BMVC 2022,
https://arxiv.org/abs/2112.00459

  mean_i L_i = w_c L_corr + w_m L_mi
  L_corr = log2 sum_d |c_d - 1|^(2 alpha),   c_d = (1/n) sum_i z(W e_student,i + b)_d z(e_teacher,i)_d
  L_mi = |G_s / tr G_s|^2 - |G_st / tr G_st|^2,   G_st = G_s * G_t by entries   (Frobenius norms)

over the n examples of the batch. z divides the centred columns by their standard deviation, and G is the matrix of
inner products of the embeddings over their lengths, [n, n]. The projector, W and b, learns with the student; as in the
authors' code, L_corr always reads it, and L_mi only where the widths of the embeddings differ. L_corr is a logarithm of
one sum, and so is the same number for every example; the rows of the matrices divide L_mi among the examples.

The defaults are those of the example in that code's README, wrn_40_2 to wrn_16_2: alpha 1.01, w_c 2, w_m 1, and 1 for
the weight of the whole. The arguments' defaults there are 1.5, 2 and 0.05; weights of other pairs are not published.

Differences: as in that code, the standard deviation has n - 1 and c the factor 1/n, so that c_d of equal embeddings is
(n - 1)/n and L_corr has a floor; and L_mi has no logarithm, which entropies of order 2 would have. Columns that are
constant have correlation 0, where that code divides by zero. 1e-12 is added to the sum in the logarithm. The batch is
the global one, over all devices; that code takes each device's.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, numerics

_SMALLEST_SUM = 1e-12
_CONSTANT = (
  1e-6  # length of a centred column, relative to that of the column, below which only rounding is left
)


def _unit_columns(x: jax.Array) -> jax.Array:
  """Centred columns of [n, d], of length 1; zero where the column is constant."""
  centred = x - jnp.mean(x, axis=0, keepdims=True)
  length = numerics.safe_norm(centred.T)
  is_constant = length <= _CONSTANT * numerics.safe_norm(x.T)
  return numerics.safe_divide(centred, jnp.where(is_constant, 0.0, length)[None, :])


def correlation_loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  *,
  alpha: float = 1.01,
  axis_name: str | None = None,
) -> jax.Array:
  """L_corr: logarithm of the summed distances of the correlations from 1, of the whole batch.

  Args:
    student_embedding: [b, d], after the projector.
    teacher_embedding: [b, d].
    alpha: > 0.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], in bits, one number b times; log2(d) for a batch of one.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  both = (numerics.upcast(student_embedding), numerics.upcast(teacher_embedding))
  student, teacher = (_unit_columns(contract.gather(x, axis_name)) for x in both)
  n = len(student)
  correlation = (n - 1) / n * jnp.sum(student * teacher, axis=0)
  total = jnp.sum(jnp.abs(correlation - 1) ** (2 * alpha))
  return jnp.full(student_embedding.shape[:1], jnp.log2(total + _SMALLEST_SUM))


def mutual_loss(
  student_embedding: jax.Array, teacher_embedding: jax.Array, *, axis_name: str | None = None
) -> jax.Array:
  """L_mi: the student's entropy of order 2 beside the joint one, without logarithms.

  Args:
    student_embedding: [b, d].
    teacher_embedding: [b, d']; the dimensions may differ.
    axis_name: the axis of devices that the batch is spread over. Rows are this device's examples, columns everyone's.

  Returns:
    [b]. Takes memory for b n numbers, n being the global batch.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape_prefix([student_embedding, teacher_embedding], 1)

  def gram(embedding):
    embedding = numerics.upcast(embedding)
    unit = numerics.safe_divide(embedding, numerics.safe_norm(embedding)[:, None])
    everyone = contract.gather(unit, axis_name)
    return jnp.matmul(unit, everyone.T, precision="highest"), jnp.sum(jnp.square(everyone), axis=1)

  def rows(products, diagonal):
    return len(diagonal) * jnp.sum(jnp.square(numerics.safe_divide(products, jnp.sum(diagonal))), axis=1)

  student, teacher = gram(student_embedding), gram(teacher_embedding)
  return rows(*student) - rows(*(s * t for s, t in zip(student, teacher, strict=True)))


def method(
  *, alpha: float = 1.01, correlation_weight: float = 2.0, mutual_weight: float = 1.0
) -> contract.Method:
  """ITRD between the embeddings of the student and of a single teacher.

  Args:
    alpha: order of the entropy in the correlation loss.
    correlation_weight: w_c.
    mutual_weight: w_m.
  """
  errors.check_positive("itrd", alpha=alpha)
  errors.check_non_negative("itrd", correlation_weight=correlation_weight, mutual_weight=mutual_weight)

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("itrd", teachers)
    return adapters.init(adapters.Linear(teacher.embedding.shape[-1]), key, student.embedding)

  def apply(params, state, student, teachers, context):
    target = teachers[0].embedding
    raw, width = numerics.upcast(student.embedding), target.shape[-1]
    projected, state = adapters.apply(adapters.Linear(width), params, state, raw, axis_name=context.axis_name)
    correlation = correlation_loss(projected, target, alpha=alpha, axis_name=context.axis_name)
    mutual = mutual_loss(raw if raw.shape[-1] == width else projected, target, axis_name=context.axis_name)
    return correlation_weight * correlation + mutual_weight * mutual, state

  return contract.make(init, apply, reads=("embedding",), learns="a projector")
