"""Regression of the embedding, the input of the classifier, on the teacher's.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850

  L_i = mean_d (e_student,id - e_teacher,id)^2

In the survey's public code this is the whole loss of the first half of "STL": the student is trained on images of
another data set, which need no labels, and then its classifier alone on those that matter.

Differences: none in the loss. That code compares networks of equal width; here, only where the widths differ, a learned
linear layer takes the student's embedding to the teacher's.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, numerics


def loss(student_embedding: jax.Array, teacher_embedding: jax.Array) -> jax.Array:
  """Mean squared error of the embeddings, per example.

  Args:
    student_embedding: [b, d].
    teacher_embedding: [b, d].

  Returns:
    [b].
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  difference = numerics.upcast(student_embedding) - numerics.upcast(teacher_embedding)
  return jnp.mean(jnp.square(difference), axis=-1)


class Projection(nn.Module):
  """The student's embedding in the teacher's width; one of that width passes unchanged."""

  width: int

  @nn.compact
  def __call__(self, embedding: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[b, width]."""
    del axis_name
    if embedding.shape[-1] == self.width:
      return embedding
    return basic.linear(self.width, embedding.shape[-1], name="projection")(embedding)


def method() -> contract.Method:
  """Regression of a single teacher's embedding."""

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("embedding_mse", teachers)
    return adapters.init(Projection(teacher.embedding.shape[-1]), key, student.embedding)

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    projection, student = Projection(teacher.embedding.shape[-1]), numerics.upcast(student.embedding)
    student, state = adapters.apply(projection, params, state, student, axis_name=context.axis_name)
    return loss(student, teacher.embedding), state

  return contract.make(init, apply, reads=("embedding",), learns="a projection where widths differ")
