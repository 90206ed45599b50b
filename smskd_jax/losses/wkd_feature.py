"""WKD-F: Wasserstein distance between Gaussians of each channel of a feature map.

Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024,
https://arxiv.org/abs/2412.08139

  L_i = mean over cells of ( mean_weight |mu_s - mu_t|^2 + |sigma_s - sigma_t|^2 )

mu and sigma, vectors over the channels, are mean and standard deviation of the positions of a cell. A map has grid x
grid cells, which overlap where the grid does not divide the map; with grid = 1 the cell is the whole map. This is the
squared distance of Gaussians of diagonal covariance, with a weight for its part of the means. The student's map first
goes through a projector that is trained with it and dropped afterwards: "conv1x1" is a 1x1 convolution, batch norm
and ReLU, which the authors' code takes on CIFAR-100; "bottleneck", for ImageNet, has 1x1, 3x3 and 1x1 convolutions
with 256 channels between, without a nonlinearity, then batch norm and ReLU.

The maps are the last ones; the weights in the literature are 0.08 (resnet32x4 -> resnet8x4) to 0.005 (ImageNet
ResNet50 -> MobileNetV1). They fall to zero by half a cosine, as those of `wkd_logit`: `decay_start_epoch` and
`decay_end_epoch`.

Differences: the variance is divided by n - 1, as in the authors' code, but it is zero for a cell of one position,
where the code has NaN. The convolutions have no bias, which batch norm takes away again. Maps of two sizes are
compared cell by cell, where the code changes the projector to a strided, transposed or wide convolution.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, numerics
from smskd_jax.losses.wkd_logit import check_decay, cosine_decay

PROJECTORS = ("conv1x1", "bottleneck")


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions, batch norm and ReLU."""

  channels: int  # of the teacher's map
  hidden_channels: int = 256

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The map [b, h, w, channels]; updates the collection `batch_stats`."""
    for i, size in enumerate((1, 3), start=1):
      x = basic.conv(self.hidden_channels, size, kernel_init=basic.uniform, name=f"conv{i}")(x)
    return adapters.ConvNorm(self.channels, relu=True, name="conv3")(x, axis_name)


def cell_statistics(feature: jax.Array, *, grid: int = 1, eps: float = 1e-5) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation of each channel in each cell, both [b, cells, c].

  Args:
    feature: [b, h, w, c].
    grid: number of cells along each axis. Cell i of an axis of n positions covers those from floor(i n / grid) to
      ceil((i + 1) n / grid).
    eps: added to the variance.
  """
  means, deviations = [], []
  for rows in _cells(feature.shape[1], grid):
    for columns in _cells(feature.shape[2], grid):
      cell = feature[:, rows, columns]
      count = cell.shape[1] * cell.shape[2]
      mean = jnp.mean(cell, axis=(1, 2))
      squares = jnp.sum(jnp.square(cell - mean[:, None, None]), axis=(1, 2))
      means.append(mean)
      deviations.append(jnp.sqrt(squares / max(count - 1, 1) + eps))
  return jnp.stack(means, axis=1), jnp.stack(deviations, axis=1)


def _cells(size: int, grid: int) -> list[slice]:
  return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def loss(
  student_feature: jax.Array,
  teacher_feature: jax.Array,
  *,
  mean_weight: float = 4.0,
  grid: int = 1,
  eps: float = 1e-5,
) -> jax.Array:
  """Squared distance of the channels' Gaussians, a sum over channels and a mean over cells.

  Args:
    student_feature: [b, h, w, c], after the projector.
    teacher_feature: [b, h', w', c].
    mean_weight: weight of the means beside the deviations.
    grid: as of `cell_statistics`.
    eps: as of `cell_statistics`.

  Returns:
    [b].
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape_suffix([student_feature, teacher_feature], 1)
  chex.assert_equal_shape_prefix([student_feature, teacher_feature], 1)
  student, teacher = (
    cell_statistics(numerics.upcast(x), grid=grid, eps=eps) for x in (student_feature, teacher_feature)
  )
  means, deviations = (jnp.sum(jnp.square(s - t), axis=-1) for s, t in zip(student, teacher, strict=True))
  return jnp.mean(mean_weight * means + deviations, axis=-1)


def method(
  *,
  mean_weight: float = 4.0,
  grid: int = 1,
  eps: float = 1e-5,
  projector: str = "conv1x1",
  student_layer: int = -1,
  teacher_layer: int = -1,
  decay_start_epoch: float = 0.0,
  decay_end_epoch: float = 0.0,
) -> contract.Method:
  """WKD-F at one layer of each network (0: stem, -1: last), through a trained projector."""
  errors.check_non_negative("wkd_feature", mean_weight=mean_weight)
  errors.check_positive_integer("wkd_feature", grid=grid)
  errors.check_positive("wkd_feature", eps=eps)
  errors.check_choice("wkd_feature", PROJECTORS, projector=projector)
  errors.check_integer("wkd_feature", student_layer=student_layer, teacher_layer=teacher_layer)
  check_decay("wkd_feature", decay_start_epoch, decay_end_epoch)

  def make_projector(channels):
    return Bottleneck(channels) if projector == "bottleneck" else adapters.ConvNorm(channels, relu=True)

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("wkd_feature", teachers)
    contract.check_layer("wkd_feature", student_layer, "student", student)
    contract.check_layer("wkd_feature", teacher_layer, "teacher", teacher)
    channels = teacher.features[teacher_layer].shape[-1]
    return adapters.init(make_projector(channels), key, student.features[student_layer])

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    target = teacher.features[teacher_layer]
    projected, state = adapters.apply(
      make_projector(target.shape[-1]),
      params,
      state,
      numerics.upcast(student.features[student_layer]),
      axis_name=context.axis_name,
    )
    values = loss(projected, target, mean_weight=mean_weight, grid=grid, eps=eps)
    return cosine_decay(context.epoch, start=decay_start_epoch, end=decay_end_epoch) * values, state

  return contract.make(init, apply, reads=("features",), learns="a projector")
