"""Inter-channel correlation: correlations between channels match the teacher's.

Liu, Huang, Lin, Xie, Wang, Chang, Liang, "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge
Distillation", ICCV 2021, https://arxiv.org/abs/2202.03680

  L_i = (1 / c) sum_{m,n} (G(r(s_i))_mn - G(t_i)_mn)^2
  G(f)_mn = g_mn / sqrt(sum_l g_ml^2),   g_mn = sum_{h,w} f_hwm f_hwn

with c the number of the teacher's channels, and r a 1x1 convolution and batch norm that learn with the student. g is
the inter-channel correlation (ICC) matrix of the paper. It sums over positions, so that the maps may differ in size.

Differences: the rows' normalisation, the division by c and the connector r follow the authors' code for CIFAR-100,
which takes the last maps and a weight of 2.5; their code for ImageNet has a 3x3 convolution. The code for CIFAR-100
also makes an embedding of the teacher that it never uses, which is left out. This is the paper's ICKD-C; its variant
for dense prediction, with a matrix for each cell of a grid, is not here. Rows of g whose norm is below 1e-12, as of
channels that are zero everywhere, stay zero.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, numerics


def _correlation(feature: jax.Array) -> jax.Array:
  """Inner products of all pairs of channels, [b, c, c], each row of norm 1."""
  feature = numerics.upcast(feature)
  products = jnp.einsum("bhwm,bhwn->bmn", feature, feature, precision="highest")
  return numerics.safe_divide(products, numerics.safe_norm(products)[:, :, None])


def loss(student_feature: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Squared distance of the channel correlation matrices, over the number of channels.

  Args:
    student_feature: [b, h, w, c], after the connector.
    teacher_feature: [b, h', w', c].

  Returns:
    [b], from 0 to 4. Takes memory for b c^2 numbers.
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape_prefix([student_feature, teacher_feature], 1)
  chex.assert_equal_shape_suffix([student_feature, teacher_feature], 1)
  difference = _correlation(student_feature) - _correlation(teacher_feature)
  return jnp.mean(jnp.sum(jnp.square(difference), axis=2), axis=1)


def method(*, student_layer: int = -1, teacher_layer: int = -1) -> contract.Method:
  """ICKD at one layer of each network (0: stem, -1: last), through a trained connector."""
  errors.check_integer("ickd", student_layer=student_layer, teacher_layer=teacher_layer)

  def connector(teacher):
    return adapters.ConvNorm(teacher.features[teacher_layer].shape[-1])

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("ickd", teachers)
    contract.check_layer("ickd", student_layer, "student", student)
    contract.check_layer("ickd", teacher_layer, "teacher", teacher)
    return adapters.init(connector(teacher), key, student.features[student_layer])

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    feature = student.features[student_layer]
    connected, state = adapters.apply(connector(teacher), params, state, feature, axis_name=context.axis_name)
    return loss(connected, teacher.features[teacher_layer]), state

  return contract.make(init, apply, reads=("features",), learns="a connector")
