"""Correlation congruence: errors of neighbours in the batch have different directions.

Peng, Jin, Liu, Zhou, Wu, Liu, Li, Zhang, "Correlation Congruence for Knowledge Distillation", ICCV 2019,
https://arxiv.org/abs/1904.01802

  L_i = b / (b - 1) <D_i, D_{i+1}> for i < b - 1, and L_{b-1} = 0
  D_i = |W_s s_i + v_s - W_t t_i - v_t|, element by element

with s_i and t_i the embeddings, and W, v linear layers that learn with the student. The factor makes the mean
over the batch that over its b - 1 pairs of neighbours.

Differences: the paper compares matrices of correlations between all pairs of examples, under a Gaussian kernel
expanded as a Taylor series. This module follows the code that the authors gave to "Contrastive Representation
Distillation" (Tian, Krishnan, Isola, ICLR 2020), whose table's CC is this one, with a weight of 0.02; the samplers of
the paper, which choose what is in a batch, are in neither. The loss depends on the order of the batch. As in that code
the teacher's layer learns too, so that both layers can lower the loss by shrinking.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, numerics


class Embeddings(nn.Module):
  """A linear layer for each network's embedding, of one dimension."""

  dimension: int

  @nn.compact
  def __call__(
    self, student: jax.Array, teacher: jax.Array, axis_name: str | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """[b, d] and [b, d'] become two of [b, dimension]."""
    del axis_name
    student_embedding = basic.linear(self.dimension, student.shape[1], name="student")(student)
    return student_embedding, basic.linear(self.dimension, teacher.shape[1], name="teacher")(teacher)


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  *,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  """Inner product of the absolute errors of each example and the next in the batch.

  Args:
    student_embedding: [b, d], after its linear layer.
    teacher_embedding: [b, d], after its linear layer.
    mask: [b], bool, as of `Context`; each example is compared with the next one of the mask.
    axis_name: the axis of devices that the batch is spread over, in order.

  Returns:
    [b], >= 0; zero for the last example of the global batch, and so for a batch of one.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  error = jnp.abs(numerics.upcast(student_embedding) - numerics.upcast(teacher_embedding))
  b, everyone = error.shape[0], contract.gather(error, axis_name)
  if mask is None:
    n = everyone.shape[0]
    factor: jax.Array | float = n / max(n - 1, 1)
    following = jnp.concatenate([everyone[1:], jnp.zeros_like(everyone[:1])])
  else:
    following = _next_of_mask(everyone, contract.gather(mask, axis_name))
    count = contract.num_masked(mask, axis_name).astype(error.dtype)
    factor = count / jnp.maximum(count - 1, 1)
    error = jnp.where(mask[:, None], error, 0)
  following = jax.lax.dynamic_slice_in_dim(following, contract.local_offset(b, axis_name), b)
  return factor * jnp.sum(error * following, axis=1)


def _next_of_mask(rows: jax.Array, mask: jax.Array) -> jax.Array:
  """Next row of the mask after each row, zeros where there is none, [n, d]."""
  n = rows.shape[0]
  index = jnp.where(mask, jnp.arange(n), n)
  following = jnp.append(jax.lax.cummin(index, reverse=True)[1:], n)
  padded = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
  return padded[following]


def method(*, dimension: int = 128) -> contract.Method:
  """CC between linear embeddings of both networks' embeddings; both embeddings learn.

  The loss depends on the order of the batch: each example is compared with the next one.
  """
  errors.check_positive_integer("cc", dimension=dimension)
  embeddings = Embeddings(dimension)

  def init(key, student, teachers, labels):
    del labels
    return adapters.init(
      embeddings, key, student.embedding, contract.single_teacher("cc", teachers).embedding
    )

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    inputs = student.embedding, teacher.embedding
    embedded, state = adapters.apply(embeddings, params, state, *inputs, axis_name=context.axis_name)
    return loss(*embedded, mask=context.mask, axis_name=context.axis_name), state

  return contract.make(
    init, apply, reads=("embedding",), spots=contract.embedding_spot, learns="embeddings of both networks"
  )
