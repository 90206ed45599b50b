"""Probabilistic knowledge transfer: probabilities of neighbours match the teacher's.

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
https://arxiv.org/abs/1803.10837

  L_i = (1 / b) sum_j P(t)_ij log((P(t)_ij + eps) / (P(s)_ij + eps))
  P(e)_ij = k(e_i, e_j) / sum_l k(e_i, e_l)
  k(x, y) = (1 + <x, y> / ((|x| + eps) (|y| + eps))) / 2   (the cosine kernel of the paper)

with e_i the embedding of example i.

Differences: the sum over j takes in j = i and is divided by b, as in the authors' code, where the paper leaves out
j = i and sums: the published weight, 30000, goes with the division by b^2 in all, and so depends on the size of the
batch. Kernels that rounding makes negative count as zero; that code takes their logarithm.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics


def _probabilities(
  embedding: jax.Array, eps: float, mask: jax.Array | None, axis_name: str | None
) -> jax.Array:
  """Each row's distribution over its neighbours on all devices, [b, n].

  Zero outside the mask.
  """
  embedding = numerics.upcast(embedding)
  directions = embedding / (numerics.safe_norm(embedding)[:, None] + eps)
  everyone = contract.gather(directions, axis_name)
  kernel = 0.5 * (1 + jnp.matmul(directions, everyone.T, precision="highest"))
  kernel = jnp.maximum(kernel, 0.0)
  if mask is not None:
    kernel = jnp.where(mask[:, None] & contract.gather(mask, axis_name)[None, :], kernel, 0.0)
    return numerics.safe_divide(kernel, jnp.sum(kernel, axis=1, keepdims=True))
  return kernel / jnp.sum(kernel, axis=1, keepdims=True)


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  *,
  eps: float = 1e-7,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  """Divergence between the distributions over neighbours, over the number of examples.

  Args:
    student_embedding: [b, d].
    teacher_embedding: [b, d']; the dimensions may differ.
    eps: added to probabilities and norms.
    mask: [b], bool, as of `Context`.
    axis_name: the axis of devices that the batch is spread over. Rows are this device's examples, columns
      everyone's.

  Returns:
    [b]; zero where all cosines agree, and for a batch of one.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape_prefix([student_embedding, teacher_embedding], 1)
  student = _probabilities(student_embedding, eps, mask, axis_name)
  teacher = _probabilities(teacher_embedding, eps, mask, axis_name)
  divergence = teacher * (jnp.log(teacher + eps) - jnp.log(student + eps))
  return contract.mean_over_mask(divergence, mask, axis_name)


def method(*, eps: float = 1e-7) -> contract.Method:
  """PKT between the embeddings of the student and of a single teacher."""
  errors.check_positive("pkt", eps=eps)

  def check(student, teachers):
    del student
    contract.single_teacher("pkt", teachers)

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    embeddings = student.embedding, teacher.embedding
    return loss(*embeddings, eps=eps, mask=context.mask, axis_name=context.axis_name)

  return contract.stateless(loss_fn, check, reads=("embedding",), spots=contract.embedding_spot)
