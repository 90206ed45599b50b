"""FitNet hints: a regressor on a hidden feature map of the student predicts the teacher's.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015,
https://arxiv.org/abs/1412.6550

  L_i = mean_{h,w,c} (r(f_student,i) - f_teacher,i)^2   (equation 3)

Differences: the paper first trains up to the hint and then the whole student; here, as in the public code of
"Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020), the hint is one more loss of a
single stage. As there, the mean over the map takes the place of half the sum, and the regressor is a
convolution, batch norm and ReLU. `Regressor` lists the differences from that code.
"""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic, convolution
from smskd_jax.losses import adapters, contract, maps, numerics


def _conv_geometry(student: int, teacher: int) -> tuple[int, int, int, int, int]:
  """(resampled size, kernel size, stride, dilation, padding) along one axis.

  The dilation is the input's: the transposed convolution of size 4, stride 2 and padding 1 is the convolution
  of size 4 and padding 2 on a map with a zero between neighbours.
  """
  if student == 2 * teacher:
    return student, 3, 2, 1, 1
  if 2 * student == teacher:
    return student, 4, 1, 2, 2
  return teacher, 1, 1, 1, 0


class Regressor(nn.Module):
  """Convolution, batch norm and ReLU from the student's map to the teacher's shape.

  Along each axis by itself: 3 wide with stride 2 where the student's map is twice as large; transposed, 4
  wide with stride 2, where it is half as large; 1 wide where the sizes are equal. At any other ratio the map
  is first resampled to the teacher's size, linearly (with antialiasing where it shrinks), and the convolution
  is 1 wide. Differences from the public code: there, at other ratios, a larger map meets an unpadded
  convolution of size 1 + s - t (25x25 from 32x32 to 8x8: more weights than the students that need it) and a
  smaller one is an error; and there the convolution has a bias, which batch norm takes away again.
  """

  shape: tuple[int, int, int]  # h, w, c of the teacher's map

  @nn.compact
  def __call__(self, feature: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Student's map in the teacher's shape; updates the collection `batch_stats`."""
    *teacher_size, channels = self.shape
    b, *student_size, c = feature.shape
    size, kernel, stride, dilation, padding = zip(
      *map(_conv_geometry, student_size, teacher_size), strict=True
    )
    x = jax.image.resize(feature, (b, *size, c), "linear")
    x = nn.Conv(
      channels,
      kernel,
      strides=stride,
      input_dilation=dilation,
      padding=[(p, p) for p in padding],
      use_bias=False,
      kernel_init=basic.uniform,
      conv_general_dilated=convolution.convolve,
      name="conv",
    )(x)
    return nn.relu(basic.norm(train=True, axis_name=axis_name, name="norm")(x))


def loss(student_feature: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Mean squared error of the regressed hint, per example.

  Args:
    student_feature: [b, h, w, c], after the regressor.
    teacher_feature: [b, h, w, c].

  Returns:
    [b].
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape([student_feature, teacher_feature])
  difference = numerics.upcast(student_feature) - numerics.upcast(teacher_feature)
  return jnp.mean(jnp.square(difference), axis=(1, 2, 3))


def method(*, student_layer: int = 2, teacher_layer: int = 2) -> contract.Method:
  """Hints at one layer of each network (0: stem, -1: last), through a trained regressor.

  The regressor always normalises by the statistics of the global batch; the state stores their running averages.
  """
  errors.check_integer("fitnet", student_layer=student_layer, teacher_layer=teacher_layer)

  def regressor(teacher):
    return Regressor(teacher.features[teacher_layer].shape[1:])

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("fitnet", teachers)
    contract.check_layer("fitnet", student_layer, "student", student)
    contract.check_layer("fitnet", teacher_layer, "teacher", teacher)
    return adapters.init(regressor(teacher), key, student.features[student_layer])

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    feature = student.features[student_layer]
    hint, state = adapters.apply(regressor(teacher), params, state, feature, axis_name=context.axis_name)
    return loss(hint, teacher.features[teacher_layer]), state

  spots = functools.partial(maps.single_layer_spot, student_layer, teacher_layer)
  return contract.make(init, apply, reads=("features",), spots=spots, learns="a regressor")
