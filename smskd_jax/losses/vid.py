"""Variational information distillation: a Gaussian models the teacher's maps.

Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", CVPR 2019,
https://arxiv.org/abs/1904.05835

  L_i = sum over layers of mean_{h,w,c} 1/2 ((f_teacher,i - mu(f_student,i))^2 / var_c + log var_c)
  var_c = softplus(a_c) + eps

mu, the regressor, and a, one number for each of the teacher's channels, are learned with the student: minimising the
loss maximises a lower bound of the mutual information between the maps. The loss can be negative.

Differences: the mean over the map takes the place of the paper's sum, and the constant log(2 pi)/2 is left out, both as
in the public code of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020), whose weight for the
sum over the stages is 1. From there too is mu, three 1x1 convolutions without bias, with ReLU between them, whose
hidden layers have equally many channels as the teacher's map. `train_variance=False` keeps every variance at its start,
as another public library does (mdistiller): there the optimiser is not given a, so that its reported numbers are those
of a fixed variance of 5.
"""

import functools
import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, maps, numerics


class Gaussian(nn.Module):
  """Mean and scale of the teacher's map given the student's."""

  channels: int  # of the teacher's map
  log_scale: float  # the start of a
  train_variance: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """mu [b, h, w, channels] and a [channels]."""
    for i in range(3):
      x = nn.relu(x) if i > 0 else x
      x = basic.conv(self.channels, 1, kernel_init=basic.uniform, name=f"conv{i}")(x)
    start = nn.initializers.constant(self.log_scale)
    if self.train_variance:
      return x, self.param("log_scale", start, (self.channels,), jnp.float32)
    return x, jnp.full((self.channels,), self.log_scale, x.dtype)


class Gaussians(nn.Module):
  """A Gaussian for each pair of maps."""

  channels: tuple[int, ...]  # of the teacher's maps
  log_scale: float
  train_variance: bool

  @nn.compact
  def __call__(
    self, features: tuple[jax.Array, ...], axis_name: str | None = None
  ) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """(mu, a) of each of the student's maps."""
    del axis_name
    return tuple(
      Gaussian(channels, self.log_scale, self.train_variance, name=f"tap{i}")(x)
      for i, (channels, x) in enumerate(zip(self.channels, features, strict=True))
    )


def loss(
  mean: jax.Array, teacher_feature: jax.Array, log_scale: jax.Array, *, eps: float = 1e-5
) -> jax.Array:
  """Negative log-likelihood of the teacher's map, per position and channel, at one layer.

  Args:
    mean: [b, h, w, c], mu of the student's map.
    teacher_feature: [b, h, w, c].
    log_scale: [c], a.
    eps: the smallest variance.

  Returns:
    [b].
  """
  chex.assert_rank([mean, teacher_feature], 4)
  chex.assert_equal_shape([mean, teacher_feature])
  variance = (jax.nn.softplus(numerics.upcast(log_scale)) + eps)[None, None, None, :]
  square = jnp.square(numerics.upcast(mean) - numerics.upcast(teacher_feature))
  return 0.5 * jnp.mean(square / variance + jnp.log(variance), axis=(1, 2, 3))


def method(
  *,
  init_variance: float = 5.0,
  eps: float = 1e-5,
  train_variance: bool = True,
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """VID at all feature layers but the stem, or at the given ones, each pair of one size."""
  errors.check_positive("vid", eps=eps, init_variance=init_variance)
  if init_variance <= eps:
    raise ValueError(f"vid: init_variance must be above eps = {eps}, got {init_variance}")
  errors.check_boolean("vid", train_variance=train_variance)
  maps.check_layers("vid", student_layers, teacher_layers)
  # The inverse of softplus, without an exponential that could overflow.
  log_scale = init_variance - eps + math.log(-math.expm1(eps - init_variance))

  def matched(student, teacher):
    return maps.match_layers("vid", student, teacher, student_layers, teacher_layers)

  def gaussians(teacher_maps):
    return Gaussians(tuple(x.shape[-1] for x in teacher_maps), log_scale, train_variance)

  def init(key, student, teachers, labels):
    del labels
    students, teacher_maps = jax.eval_shape(matched, student, contract.single_teacher("vid", teachers))
    return adapters.init(gaussians(teacher_maps), key, students)

  def apply(params, state, student, teachers, context):
    students, teacher_maps = matched(student, *teachers)
    predicted, state = adapters.apply(
      gaussians(teacher_maps), params, state, students, axis_name=context.axis_name
    )
    layer_losses = [loss(mean, t, a, eps=eps) for (mean, a), t in zip(predicted, teacher_maps, strict=True)]
    return sum(layer_losses), state

  def spots(student, teachers):
    options = {"init_variance": init_variance, "eps": eps, "train_variance": train_variance}
    pairs = maps.pair_layers(
      "vid", student, contract.single_teacher("vid", teachers), student_layers, teacher_layers
    )
    return maps.layer_spots(pairs, functools.partial(method, **options))

  learns = "regressors and variances"
  return contract.make(init, apply, reads=("features",), spots=spots, learns=learns)
