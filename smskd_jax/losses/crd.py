"""Contrastive representation distillation with memory banks of all training examples.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699

  L_i = C(s_i, M_t, Z_s) + C(t_i, M_s, Z_t)
  C(v_i, M, Z) = - log h(v_i . M_i+) - sum_{j in N_i} log (1 - h(v_i . M_j))   (equation 18)
  h(x) = p / (p + K/n),  p = exp(x / T) / Z

s and t are linear embeddings of the embeddings, both learned, of length 1. M_s and M_t are memory banks with one
embedding of each of the n training examples; after each step the rows of the batch become
normalize(momentum M_i + (1 - momentum) s_i), likewise with t. N_i are K examples of other classes than example i, i+ is
the example itself or, with relaxed positives, any example of its class. Here K is `num_negatives`. The gradient reaches
both embeddings but neither bank.

Z is not in the paper. The public code divides by it, and fixes it in the first batch at n times the mean of exp(x / T),
over positives and negatives, for each direction by itself; here the batch is that of all devices. That code's epsilon
of 1e-7 is kept too: h = p / (p + K/n + eps), and (K/n) / (p + K/n + eps) in the place of 1 - h. The banks start uniform
between -+sqrt(3 / dimension), rows of length about 1, as there.

Differences: negatives are drawn with replacement, in the public code only where there are fewer than K of them (on
CIFAR-100, with 16384 of 49500, about a seventh are repeats here). As there, negatives are drawn anew in every step,
the loss is that of the banks before their update, and with relaxed positives too it is the example's own row that is
updated. Everything is computed from logarithms, so that no exponential overflows. The rows that are updated are those
of all devices; they must be different examples. Where an embedding and its memory cancel exactly, the new row is zero;
that code divides by zero there.

Published numbers on CIFAR-100 are with a weight of 0.8 beside the cross-entropy, momentum 0.5, 128 dimensions and
K = 16384. The temperature is 0.07 in the public code; the paper names 0.1 for CIFAR-100. The banks and Z start anew in
each stage. They hold 2 n x dimension numbers: 51 MB for CIFAR-100, 1.3 GB for ImageNet.
"""

import math
from typing import Any, NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, memory_bank, numerics
from smskd_jax.types import Batch, MethodVariables

_TRAITS: dict[str, Any] = {
  "reads": ("embedding",),
  "needs_labels": True,
  "per_example_memory": True,
  "spots": contract.embedding_spot,
  "learns": "embeddings of both networks; two memory banks",
}


class CrdState(NamedTuple):
  """Memory of CRD, equal on all devices."""

  memory_student: jax.Array  # [n, d]
  memory_teacher: jax.Array  # [n, d]
  log_normalizers: jax.Array  # [2], log Z_s and log Z_t; the logarithm of 0, -inf, before the first batch
  classes: memory_bank.ClassIndex


class Embeddings(nn.Module):
  """A linear embedding of length 1 for each network."""

  dimension: int

  @nn.compact
  def __call__(
    self, student: jax.Array, teacher: jax.Array, axis_name: str | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Both embeddings, [b, dimension] each."""
    del axis_name
    student = basic.linear(self.dimension, student.shape[-1], name="student")(student)
    teacher = basic.linear(self.dimension, teacher.shape[-1], name="teacher")(teacher)
    return _normalize(student), _normalize(teacher)


def _normalize(x: jax.Array) -> jax.Array:
  return numerics.safe_divide(x, numerics.safe_norm(x)[:, None])


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  memory_student: jax.Array,
  memory_teacher: jax.Array,
  *,
  positive_index: jax.Array,
  negative_index: jax.Array,
  normalizer_student: jax.Array | float,
  normalizer_teacher: jax.Array | float,
  temperature: float = 0.07,
  eps: float = 1e-7,
) -> jax.Array:
  """Noise-contrastive loss of both directions, per example.

  Args:
    student_embedding: [b, d], of length 1.
    teacher_embedding: [b, d], of length 1.
    memory_student: [n, d], the student's bank; a constant.
    memory_teacher: [n, d], the teacher's bank; a constant.
    positive_index: [b], rows of the banks.
    negative_index: [b, K], rows of the banks.
    normalizer_student: Z_s > 0, for the student's embedding against the teacher's bank.
    normalizer_teacher: Z_t > 0, for the teacher's embedding against the student's bank.
    temperature: T > 0.
    eps: as above; 0 for the paper's h.

  Returns:
    [b], >= 0. The memory that this takes is that of `memory_bank.similarities`.
  """
  chex.assert_rank([student_embedding, memory_student, positive_index, negative_index], [2, 2, 1, 2])
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  chex.assert_equal_shape([memory_student, memory_teacher])
  index = jnp.concatenate([jnp.asarray(positive_index)[:, None], jnp.asarray(negative_index)], axis=1)
  scores = _scores(
    student_embedding, teacher_embedding, memory_student, memory_teacher, index, temperature=temperature
  )
  log_normalizers = (jnp.log(normalizer_student), jnp.log(normalizer_teacher))
  return _nce_loss(scores, log_normalizers, memory_student.shape[0], eps)


def _scores(student, teacher, memory_student, memory_teacher, index, *, temperature):
  """x / T of the student's and of the teacher's embedding, [b, 1 + K] each."""
  student, teacher, memory_student, memory_teacher = map(
    numerics.upcast, (student, teacher, memory_student, memory_teacher)
  )
  student_similarity = memory_bank.similarities(student, memory_teacher, index)
  teacher_similarity = memory_bank.similarities(teacher, memory_student, index)
  return student_similarity / temperature, teacher_similarity / temperature


def _nce_loss(scores, log_normalizers, n, eps=1e-7):
  """Equation 18 of both directions, [b], from their scores, the positive first, and log Z."""
  total = 0.0
  for x, log_normalizer in zip(scores, log_normalizers, strict=True):
    num_negatives = x.shape[1] - 1
    noise = num_negatives / n
    logit = x - log_normalizer - math.log(noise + eps)  # of h
    # With eps, (K/n) / (p + K/n + eps) is smaller than 1 - h by a constant factor.
    constant = num_negatives * math.log1p(eps / noise)
    total += jax.nn.softplus(-logit[:, 0]) + jnp.sum(jax.nn.softplus(logit[:, 1:]), axis=1) + constant
  return total


def _log_normalizers(scores, n, axis_name):
  """log Z of both directions, [2]: n times the mean of exp(x / T) over the global batch."""
  log_sums = jnp.stack([jax.nn.logsumexp(x, axis=1) for x in scores], axis=1)
  log_sums = contract.gather(log_sums, axis_name)
  count = log_sums.shape[0] * scores[0].shape[1]
  return jax.nn.logsumexp(log_sums, axis=0) + math.log(n / count)


def update_bank(
  bank: jax.Array, index: jax.Array, embedding: jax.Array, *, momentum: float = 0.5
) -> jax.Array:
  """Bank after a batch.

  Args:
    bank: [n, d].
    index: [b], the rows of the batch, all different.
    embedding: [b, d], of length 1; a constant.
    momentum: weight of the old rows.

  Returns:
    [n, d], in the bank's type; rows that are not of the batch are unchanged.
  """
  bank = jnp.asarray(bank)
  rows = _normalize(momentum * bank[index] + (1 - momentum) * jax.lax.stop_gradient(embedding))
  return bank.at[index].set(rows.astype(bank.dtype))


def sample_indices(
  classes: memory_bank.ClassIndex, batch: Batch, key: jax.Array, *, num_negatives: int, positives: str
) -> jax.Array:
  """Rows of the banks for each example, [b, 1 + K]: the positive, then the negatives."""
  words = memory_bank.random_bits(key, batch.index, 1 + num_negatives)
  positive = batch.index[:, None]
  if positives == "relaxed":
    positive = memory_bank.sample_positives(classes, batch.label, words[:, :1])
  negatives = memory_bank.sample_negatives(classes, batch.label, words[:, 1:])
  return jnp.concatenate([positive, negatives], axis=1)


def _initial_state(key, labels, dimension, dtype):
  """Random banks, and no normalizers."""
  if not isinstance(labels, jax.core.Tracer) and np.unique(np.asarray(labels)).size < 2:
    raise ValueError("crd: needs examples of other classes, but the training set has a single class")
  n, bound = len(labels), math.sqrt(3 / dimension)
  # Drawn flat, as in `basic.uniform`.
  memory_student, memory_teacher = (
    jax.random.uniform(k, (n * dimension,), dtype, -bound, bound).reshape(n, dimension)
    for k in jax.random.split(key)
  )
  return CrdState(
    memory_student, memory_teacher, jnp.full((2,), -jnp.inf, dtype), memory_bank.make_class_index(labels)
  )


def method(
  *,
  dimension: int = 128,
  num_negatives: int = 16384,
  temperature: float = 0.07,
  momentum: float = 0.5,
  positives: str = "exact",
) -> contract.Method:
  """CRD between the embeddings of the student and of a single teacher.

  `num_negatives` may exceed the number of examples of other classes. `positives` are "exact", the example itself, or
  "relaxed", any example of its class.
  """
  errors.check_positive_integer("crd", dimension=dimension, num_negatives=num_negatives)
  errors.check_positive("crd", temperature=temperature)
  errors.check_unit_interval("crd", momentum=momentum)
  errors.check_choice("crd", ("exact", "relaxed"), positives=positives)
  embeddings = Embeddings(dimension)

  def init(key, student, teachers, labels):
    teacher = contract.single_teacher("crd", teachers)
    params_key, state_key = jax.random.split(key)
    params = adapters.init(embeddings, params_key, student.embedding, teacher.embedding).params
    dtype = jnp.promote_types(jnp.result_type(student.embedding, teacher.embedding), jnp.float32)
    return MethodVariables(params, _initial_state(state_key, labels, dimension, dtype))

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    pooled = (numerics.upcast(student.embedding), numerics.upcast(teacher.embedding))
    embedded, _ = adapters.apply(embeddings, params, {}, *pooled)
    memories = (state.memory_student, state.memory_teacher)
    index = sample_indices(
      state.classes, context.batch, context.key, num_negatives=num_negatives, positives=positives
    )
    scores = _scores(*embedded, *memories, index, temperature=temperature)
    n = len(state.memory_student)
    log_normalizers = jax.lax.cond(
      jnp.isneginf(state.log_normalizers[0]),
      lambda: _log_normalizers(jax.lax.stop_gradient(scores), n, context.axis_name),
      lambda: state.log_normalizers,
    )
    rows = contract.gather(context.batch.index, context.axis_name)
    memory_student, memory_teacher = (
      update_bank(bank, rows, contract.gather(x, context.axis_name), momentum=momentum)
      for bank, x in zip(memories, jax.lax.stop_gradient(embedded), strict=True)
    )
    state = CrdState(memory_student, memory_teacher, log_normalizers, state.classes)
    return _nce_loss(scores, log_normalizers, n), state

  return contract.make(init, apply, **_TRAITS)
