"""Masked generative distillation: a generator restores the teacher's map.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022, https://arxiv.org/abs/2205.01529

  L_i = sum_{h,w,c} (G(M_i * A(f_student,i)) - f_teacher,i)^2
  G = conv3x3 ReLU conv3x3,   M_i = 0 with probability lambda, else 1

A, a 1x1 convolution where the channels differ, and G learn with the student. M is drawn in every step for each image:
one number for each position of the map, or with `mask` = "channels" one for each channel. The values that remain are
not scaled. The sum over the map depends on the map's size. The published weight on ImageNet is 7e-5, for the last maps
(7x7, 512 channels and more) and lambda = 0.15. There are no published numbers on CIFAR-100.

Differences: the paper masks positions, the default here; the authors' code for classification, from which the numbers
on ImageNet come, masks channels. That code needs maps of one size; here the larger of two is averaged down to the
smaller. Biases start at zero, where PyTorch's are uniform. The mask depends on the random key of the step and on the
index of the image alone, so that any number of devices draws the same.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, maps, memory_bank, numerics

POSITIONS, CHANNELS = "positions", "channels"


class Generator(nn.Module):
  """A and G: restores a map of the teacher's channels from a masked map of the student."""

  channels: int  # of the teacher's map

  @nn.compact
  def __call__(self, feature: jax.Array, mask: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Generated map [b, h, w, channels] of a map [b, h, w, c] and a mask that fits it."""
    del axis_name

    def conv(kernel_size, name):
      return basic.conv(self.channels, kernel_size, use_bias=True, kernel_init=basic.uniform, name=name)

    x = feature if feature.shape[-1] == self.channels else conv(1, "align")(feature)
    return conv(3, "conv2")(nn.relu(conv(3, "conv1")(x * mask)))


def sample_mask(
  key: jax.Array, index: jax.Array, shape: tuple[int, int, int], *, mask_ratio: float, mask: str
) -> jax.Array:
  """Mask of each image: 0 with probability `mask_ratio`, else 1.

  Args:
    key: random key of the step.
    index: [b], position in the training set; images of one index have one mask.
    shape: (h, w, c) of the masked map.
    mask_ratio: lambda, from 0 to 1.
    mask: 'positions' or 'channels'.

  Returns:
    [b, h, w, 1] or [b, 1, 1, c], float32.
  """
  h, w, c = shape
  size = (h, w, 1) if mask == POSITIONS else (1, 1, c)
  bits = memory_bank.random_bits(key, index, size[0] * size[1] * size[2])
  uniform = (bits >> 8).astype(jnp.float32) / 2**24  # in [0, 1), exactly
  return (uniform >= mask_ratio).astype(jnp.float32).reshape(-1, *size)


def loss(generated: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Squared error of the generated map, summed over positions and channels.

  Args:
    generated: [b, h, w, c], from the generator.
    teacher_feature: [b, h, w, c].

  Returns:
    [b].
  """
  chex.assert_rank([generated, teacher_feature], 4)
  chex.assert_equal_shape([generated, teacher_feature])
  difference = numerics.upcast(generated) - numerics.upcast(teacher_feature)
  return jnp.sum(jnp.square(difference), axis=(1, 2, 3))


def method(
  *, mask_ratio: float = 0.15, mask: str = POSITIONS, student_layer: int = -1, teacher_layer: int = -1
) -> contract.Method:
  """MGD at one layer of each network (0: stem, -1: last).

  Args:
    mask_ratio: lambda.
    mask: what a number of the mask covers, 'positions' or 'channels'.
    student_layer: the student's map.
    teacher_layer: the teacher's map.
  """
  errors.check_unit_interval("mgd", mask_ratio=mask_ratio)
  errors.check_choice("mgd", (POSITIONS, CHANNELS), mask=mask)
  errors.check_integer("mgd", student_layer=student_layer, teacher_layer=teacher_layer)

  def matched(student, teacher):
    features = student.features[student_layer], teacher.features[teacher_layer]
    return maps.match_spatial_size(*map(numerics.upcast, features))

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("mgd", teachers)
    contract.check_layer("mgd", student_layer, "student", student)
    contract.check_layer("mgd", teacher_layer, "teacher", teacher)
    feature, target = jax.eval_shape(matched, student, teacher)
    return adapters.init(Generator(target.shape[-1]), key, feature, target)

  def apply(params, state, student, teachers, context):
    feature, target = matched(student, *teachers)
    drawn = sample_mask(context.key, context.batch.index, target.shape[1:], mask_ratio=mask_ratio, mask=mask)
    generated, state = adapters.apply(
      Generator(target.shape[-1]), params, state, feature, drawn, axis_name=context.axis_name
    )
    return loss(generated, target), state

  return contract.make(init, apply, reads=("features",), learns="a generator")
