"""Softmax regression representation learning: embeddings and their teacher logits agree.

Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning",
ICLR 2021, https://openreview.net/forum?id=ZzwDy_wiWv

  L_i = w_f mean_d (h_student,i - h_teacher,i)^2                  (feature matching)
        + w_l mean_k ((h_student,i W + b) - (h_teacher,i W + b))^2  (softmax regression)

W and b are the teacher's classifier, which is not trained. h_teacher is its input; h_student is the mean over
positions of the student's last map after a connector: 1x1 convolution, batch norm, ReLU.

Differences: means over embedding and classes take the place of squared norms, as in the authors' code, whose weights
are both 1. The logits are subtracted before they are computed, as (h_student - h_teacher) W, which is the same and
loses no digits. Another public version, in the code of "Knowledge Distillation with the Reused Teacher Classifier"
(Chen et al., CVPR 2022), has the connector after the pooling; its numbers on CIFAR-100 come with KD's term as well.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, numerics


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  teacher_kernel: jax.Array,
  *,
  feature_weight: float = 1.0,
  logits_weight: float = 1.0,
) -> jax.Array:
  """Mean squared errors of the embedding and of its logits by the teacher's classifier.

  Args:
    student_embedding: [b, d], after the connector.
    teacher_embedding: [b, d].
    teacher_kernel: [d, k], the weights of the teacher's classifier.
    feature_weight: w_f.
    logits_weight: w_l.

  Returns:
    [b].
  """
  chex.assert_rank([student_embedding, teacher_embedding, teacher_kernel], 2)
  chex.assert_equal_shape([student_embedding, teacher_embedding])
  difference = numerics.upcast(student_embedding) - numerics.upcast(teacher_embedding)
  logit_difference = jnp.dot(difference, numerics.upcast(teacher_kernel), precision="highest")
  by_feature = jnp.mean(jnp.square(difference), axis=1)
  return feature_weight * by_feature + logits_weight * jnp.mean(jnp.square(logit_difference), axis=1)


def method(*, feature_weight: float = 1.0, logits_weight: float = 1.0) -> contract.Method:
  """SRRL from a single teacher, through a connector that learns with the student.

  The student's own logits are not read, so that the numbers of classes may differ.
  """
  errors.check_non_negative("srrl", feature_weight=feature_weight, logits_weight=logits_weight)

  def connector(teacher):
    return adapters.ConvNorm(teacher.embedding.shape[-1], relu=True, kernel_init=basic.he_normal)

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("srrl", teachers)
    contract.check_output("srrl", "final_map", "student", student)
    contract.check_output("srrl", "head", "teacher", teacher)
    return adapters.init(connector(teacher), key, student.final_map)

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    feature, state = adapters.apply(
      connector(teacher), params, state, student.final_map, axis_name=context.axis_name
    )
    values = loss(
      jnp.mean(numerics.upcast(feature), axis=(1, 2)),
      teacher.embedding,
      teacher.head.kernel,
      feature_weight=feature_weight,
      logits_weight=logits_weight,
    )
    return values, state

  return contract.make(
    init, apply, reads=("embedding", "head"), student_reads=("final_map",), learns="a connector"
  )
