"""Norm and direction: a long embedding that points to the teacher's class mean.

Wang, Cheng, Duan, Wang, Feng, Kong, "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
2023, https://arxiv.org/abs/2305.17007

  L_i = w(epoch) L_i(wrapped) + weight (1 - <f_s, m_y> / (|m_y| max(|f_s|, |f_t|)))
  w(epoch) = min(e / warmup_epochs, 1)

A plug-in, which the paper calls KD++ around KD, DKD++, DIST++ and ReviewKD++: f_s and f_t are the networks'
embeddings, y is the label, m_y the mean of the teacher's embeddings of all training images of class y, computed once
before the first step. While f_s is shorter than f_t, a longer f_s lowers the term; beyond, the term is 1 minus the
cosine. Where the widths differ, f_s first goes through a linear layer, which is trained with the student and dropped
afterwards.

The outer weight of the config multiplies both terms: 3.5 KD + 2 ND, the paper's for resnet32x4 -> resnet8x4, is
weight=3.5 with weight=2/3.5 in this plug-in. `warmup_epochs` (20 in the authors' code) is for the wrapped method
alone, and e is 0 in the first epoch; the field of the same name in the method's entry is for both. The wrapped method
gets its inputs unchanged. In a stage of several views, for a method that takes all of them at once, the term is the
mean over the views.

Differences: m_y is of images without augmentation; the authors' code crops and flips them at random, and rounds the
means to four decimals. There the layer between two widths comes after batch norm and dropout.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, numerics, reduction
from smskd_jax.losses.embedding_mse import Projection
from smskd_jax.types import MethodVariables


def loss(
  student_embedding: jax.Array, teacher_embedding: jax.Array, labels: jax.Array, class_means: jax.Array
) -> jax.Array:
  """1 - <f_s, m_y> / (|m_y| max(|f_s|, |f_t|)), from 0 to 2.

  Args:
    student_embedding: [b, d], after the linear layer if there is one.
    teacher_embedding: [b, d].
    labels: [b].
    class_means: [k, d], means of the teacher's embeddings, of any length. A class of mean zero gives 1, with a
      gradient of zero.

  Returns:
    [b].
  """
  chex.assert_rank([student_embedding, teacher_embedding, class_means], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  chex.assert_equal_shape_suffix([student_embedding, class_means], 1)
  chex.assert_shape(labels, (len(student_embedding),))
  student, teacher = numerics.upcast(student_embedding), numerics.upcast(teacher_embedding)
  means = numerics.normalize_scale(numerics.upcast(class_means))[labels]
  direction = numerics.safe_divide(means, numerics.safe_norm(means)[:, None])
  norm = jnp.maximum(numerics.safe_norm(student), numerics.safe_norm(teacher))
  return 1.0 - numerics.safe_divide(jnp.sum(student * direction, axis=-1), norm)


def _init_means(teachers, labels):
  del labels
  teacher = contract.single_teacher("nd", teachers)
  k, d = teacher.logits.shape[-1], teacher.embedding.shape[-1]
  dtype = jnp.promote_types(teacher.embedding.dtype, jnp.float32)
  return jnp.zeros((k, d), dtype), jnp.zeros((k, 1), dtype)


def _add_to_means(accumulator, teachers, labels):
  (teacher,), (sums, counts) = teachers, accumulator
  is_class = jax.nn.one_hot(labels, len(counts), dtype=sums.dtype)
  embedding = teacher.embedding.astype(sums.dtype)
  new = jnp.matmul(is_class.T, embedding, precision="highest")
  return sums + new, counts + jnp.sum(is_class, axis=0)[:, None]


# Mean embedding of each class, [k, d]; zero for a class without images.
CLASS_MEANS = reduction.Reduction(
  frozenset({"embedding"}),
  _init_means,
  _add_to_means,
  lambda accumulator: accumulator[0] / jnp.maximum(accumulator[1], 1),
)


def method(
  wrapped: contract.Method, /, *, weight: float = 1.0, warmup_epochs: float = 0.0
) -> contract.Method:
  """The wrapped method with the norm-and-direction term; the state has the class means."""
  errors.check_non_negative("nd", weight=weight)
  errors.check_non_negative("nd", warmup_epochs=warmup_epochs)

  def init(key, student, teachers, labels, statistics):
    teacher = contract.single_teacher("nd", teachers)
    class_means, inner = statistics
    method_key, key = jax.random.split(key)
    aux = contract.init_method(wrapped, method_key, student, teachers, labels, inner)
    projection = adapters.init(Projection(teacher.embedding.shape[-1]), key, student.embedding)
    return MethodVariables(
      params={"projection": projection.params, "method": aux.params},
      state={"class_means": class_means, "method": aux.state},
    )

  def term(params, student, teacher, context, class_means):
    module, embedding = Projection(teacher.embedding.shape[-1]), numerics.upcast(student.embedding)
    projected, _ = adapters.apply(module, params, {}, embedding, axis_name=context.axis_name)
    return loss(projected, teacher.embedding, context.batch.label, class_means)

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    views = zip((student, *student.view_outputs), (teacher, *teacher.view_outputs), strict=True)
    terms = [term(params["projection"], s, t, context, state["class_means"]) for s, t in views]
    values, method_state = wrapped.apply(
      params["method"], state["method"], student, teachers, context, stop_teacher_gradient=False
    )
    if warmup_epochs:
      values = jnp.minimum(jnp.floor(jnp.asarray(context.epoch, float)) / warmup_epochs, 1.0) * values
    return values + weight * (sum(terms) / len(terms)), state | {"method": method_state}

  return contract.wrap(
    wrapped,
    init,
    apply,
    reads=wrapped.reads | {"embedding"},
    student_reads=wrapped.student_reads | {"embedding"},
    needs_labels=True,
    learns="class means; a linear layer where widths differ",
    statistics=reduction.join((CLASS_MEANS, wrapped.statistics)),
  )
