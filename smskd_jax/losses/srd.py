"""Simple recipe distillation: normalised embeddings match, in a logarithm of one sum.

Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", AAAI 2024,
https://arxiv.org/abs/2303.11098

  mean_i L_i = log sum_{i,d} |B(W e_student,i + b)_d - B(e_teacher,i)_d|^alpha
  B(e)_d = (e_d - mean_i e_d) / sqrt(var_i e_d + eps)

over the n examples of the batch and the dimensions d of the embedding. The projector, W and b, is linear, always there,
and learned with the student. B is batch norm without scale and offset, of the statistics of the batch in both networks.
The logarithm is of the whole sum, and grows with the size of the batch: L_i is the same number for every example.

The defaults, alpha = 4 and eps = 1e-4, are those of the authors' code for ImageNet, whose whole loss is cross-entropy +
2 L + KD at temperature 1 of weight 1. No code for CIFAR-100 has been published.

Differences: 1e-12 is added to the sum, which that code lets reach zero where the networks agree. The batch is the
global one, over all devices; that code takes each device's. The authors' code for vision transformers has another loss,
log(1e-5 + sum_d (c_d - 1)^4) of the correlations c_d over the batch, which is not here.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, numerics

_SMALLEST_SUM = 1e-12


def _standardize(x: jax.Array, eps: float) -> jax.Array:
  """Columns of [n, d] with mean 0 and variance 1."""
  centred = x - jnp.mean(x, axis=0, keepdims=True)
  return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=0, keepdims=True) + eps)


def log_sum(student: jax.Array, teacher: jax.Array, *, exponent: float = 4.0) -> jax.Array:
  """Logarithm of the summed differences, [], of normalised embeddings [n, d]."""
  return jnp.log(jnp.sum(jnp.abs(student - teacher) ** exponent) + _SMALLEST_SUM)


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  *,
  exponent: float = 4.0,
  eps: float = 1e-4,
  axis_name: str | None = None,
) -> jax.Array:
  """Logarithm of the summed differences of the normalised embeddings, of the whole batch.

  Args:
    student_embedding: [b, d], after the projector.
    teacher_embedding: [b, d].
    exponent: alpha >= 1.
    eps: added to the variances; > 0.
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b], in nats, one number b times; log(1e-12) where the normalised embeddings agree, as for a batch of one.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  both = (numerics.upcast(student_embedding), numerics.upcast(teacher_embedding))
  student, teacher = (_standardize(contract.gather(x, axis_name), eps) for x in both)
  return jnp.full(student_embedding.shape[:1], log_sum(student, teacher, exponent=exponent))


def method(*, exponent: float = 4.0, eps: float = 1e-4) -> contract.Method:
  """SRD between the embeddings of the student and of a single teacher."""
  errors.check_positive("srd", exponent=exponent, eps=eps)
  if exponent < 1:
    raise ValueError(f"srd: exponent must be a number >= 1, got {exponent}")

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("srd", teachers)
    return adapters.init(adapters.Linear(teacher.embedding.shape[-1]), key, student.embedding)

  def apply(params, state, student, teachers, context):
    target, embedding = teachers[0].embedding, numerics.upcast(student.embedding)
    projected, state = adapters.apply(
      adapters.Linear(target.shape[-1]), params, state, embedding, axis_name=context.axis_name
    )
    return loss(projected, target, exponent=exponent, eps=eps, axis_name=context.axis_name), state

  return contract.make(init, apply, reads=("embedding",), learns="a projector")
