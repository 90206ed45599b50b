"""Contrastive distillation (InfoNCE): negatives are the other examples of the batch.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, https://arxiv.org/abs/1910.10699; with the
loss of van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding", 2018,
https://arxiv.org/abs/1807.03748

  L_i = C(s_i, t) + C(t_i, s)
  C(v_i, w) = - log exp(v_i . w_i / T) / (exp(v_i . w_i / T) + sum_{j in N_i} exp(v_i . w_j / T))

s and t are linear embeddings of the embeddings, both learned, of length 1, as in CRD (`crd.py`). N_i are the
examples of other classes than example i in the batch of all devices, or with `same_class_negatives` all others.

Differences: this is not the loss of the CRD paper, and that paper's published numbers do not apply. It is a
variant for training sets whose memory banks are too large. It has no memory; its negatives are the few of the batch
instead of thousands, and the gradient reaches them; and the cross-entropy over the batch (InfoNCE) takes the place of
noise-contrastive estimation with its normalizers. We sum the two directions, as CRD does. The temperature is that of
CRD's public code and has not been tuned for this loss. An example without negatives, as in a batch of one, has a loss
of zero.

The closest published method is Giakoumoglou and Stathaki, "Discriminative and Consistent Representation Distillation",
2024, https://arxiv.org/abs/2407.11802, whose contrastive term is C(s_i, t) alone, against all others of the batch, with
a learned temperature and bias; it has a second term besides.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, numerics
from smskd_jax.losses.crd import Embeddings


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  labels: jax.Array,
  *,
  temperature: float = 0.07,
  same_class_negatives: bool = False,
  axis_name: str | None = None,
) -> jax.Array:
  """Cross-entropy of each example's own embedding among the batch's, in both directions.

  Args:
    student_embedding: [b, d], of length 1.
    teacher_embedding: [b, d], of length 1.
    labels: [b].
    temperature: T > 0.
    same_class_negatives: True if other examples of the same class are negatives too.
    axis_name: the axis of devices that the batch is spread over. The rows i are this device's examples, j are
      everyone's.

  Returns:
    [b], >= 0; zero for an example without negatives. Takes memory for b n numbers, n being the global batch.
  """
  chex.assert_rank([student_embedding, labels], [2, 1])
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  student, teacher = numerics.upcast(student_embedding), numerics.upcast(teacher_embedding)
  labels = jnp.asarray(labels)
  b = labels.size
  everyones_labels = contract.gather(labels, axis_name)
  place = contract.local_offset(b, axis_name) + jnp.arange(b)
  is_own = place[:, None] == jnp.arange(everyones_labels.size)[None, :]
  is_negative = ~is_own if same_class_negatives else labels[:, None] != everyones_labels[None, :]
  return sum(
    _info_nce(anchor, contract.gather(other, axis_name), is_own, is_negative, temperature)
    for anchor, other in ((student, teacher), (teacher, student))
  )


def _info_nce(anchor, candidates, is_positive, is_negative, temperature):
  """InfoNCE loss of each anchor, [b, d], against candidates, [n, d], by masks [b, n]."""
  scores = jnp.einsum("bd,nd->bn", anchor, candidates, precision="highest") / temperature
  positive = jnp.sum(scores, axis=1, where=is_positive, keepdims=True)
  # The own margin is zero up to rounding; exactly zero, it keeps the loss from falling below zero.
  margins = jnp.where(is_positive, 0.0, scores - positive)
  return jax.nn.logsumexp(margins, axis=1, where=is_positive | is_negative)


def method(
  *, dimension: int = 128, temperature: float = 0.07, same_class_negatives: bool = False
) -> contract.Method:
  """Contrast within the batch between the embeddings of the student and of a single teacher."""
  errors.check_positive_integer("crd_infonce", dimension=dimension)
  errors.check_positive("crd_infonce", temperature=temperature)
  errors.check_boolean("crd_infonce", same_class_negatives=same_class_negatives)
  embeddings = Embeddings(dimension)

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("crd_infonce", teachers)
    return adapters.init(embeddings, key, student.embedding, teacher.embedding)

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    pooled = (numerics.upcast(student.embedding), numerics.upcast(teacher.embedding))
    embedded, state = adapters.apply(embeddings, params, state, *pooled)
    rows = loss(
      *embedded,
      context.batch.label,
      temperature=temperature,
      same_class_negatives=same_class_negatives,
      axis_name=context.axis_name,
    )
    return rows, state

  return contract.make(
    init, apply, reads=("embedding",), needs_labels=True, learns="embeddings of both networks"
  )
