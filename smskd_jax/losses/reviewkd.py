"""ReviewKD: fused student's layers, deep to shallow, match the teacher's.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021, https://arxiv.org/abs/2104.09044

  L_i = sum over layers of sum_l w_l mean (P_l r_j,i - P_l f_teacher,j,i)^2 / sum_l w_l     (hierarchical context loss)
  g_j = resize(a_1 x_j + a_2 up(g_{j+1})),  (a_1, a_2) = sigmoid(W [x_j, up(g_{j+1})] + b)     (attention-based fusion)
  x_j = BN(conv1x1(f_student,j)),  r_j = BN(conv3x3(g_j))

P_l averages a map to l x l positions: w is 1 for the map itself, 1/2 for l = 4, 1/4 for 2 and 1/8 for 1, of which those
that are not smaller than the map are left out. The deepest pair are the embedding, as maps of one position, with
g = x. All x and g have min(512, d) channels, d being those of the student's embedding. The student's maps are taken
after the activation, the teacher's before it, as in the authors' code. up, to the student's height and width, and
resize, to the teacher's, take the nearest position. Weights in the literature are 0.6 to 8 by pair of networks, growing
from 0 during the first 20 epochs.

Differences: the authors' code lists the shapes of each pair by hand; here they are found. Of networks with different
numbers of stages the last ones are paired. The fusion is computed from each of its two inputs, without joining them in
one map of twice the channels, which is the same. Even so each stage holds several maps of the student's size with
min(512, d) channels, which makes this the method that needs the most memory.
"""

from collections.abc import Sequence
import math

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, maps, numerics


def _kernel_init(key, shape, dtype):
  """Kaiming's uniform distribution for a linear layer, as in the authors' code."""
  return math.sqrt(3.0) * basic.uniform(key, shape, dtype)


def _resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes a map; position i of m takes position floor(i n / m) of n, as PyTorch does."""
  for axis, m in ((1, size[0]), (2, size[1])):
    n = x.shape[axis]
    if m % n == 0:
      x = jnp.repeat(x, m // n, axis=axis)
    else:
      x = jnp.take(x, np.arange(m) * n // m, axis=axis)
  return x


class Fusion(nn.Module):
  """Attention-based fusion of one of the student's maps with the deeper ones."""

  hidden_channels: int  # channels of g
  shape: tuple[int, int, int]  # h, w, c of the teacher's map

  @nn.compact
  def __call__(
    self, feature: jax.Array, deeper: jax.Array | None, axis_name: str | None
  ) -> tuple[jax.Array, jax.Array]:
    """r and g, of the teacher's height and width; the deepest map has nothing to be fused with."""

    def conv_norm(channels, size, name):
      return adapters.ConvNorm(channels, size, kernel_init=_kernel_init, name=name)

    g = conv_norm(self.hidden_channels, 1, "conv1")(feature, axis_name)
    if deeper is not None:
      g = self._fuse(g, deeper)
    g = _resize_nearest(g, self.shape[:2])
    return conv_norm(self.shape[-1], 3, "conv2")(g, axis_name), g

  def _fuse(self, x, deeper):
    size = x.shape[1:3]
    bound = 1 / math.sqrt(2 * self.hidden_channels)

    def bias_init(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    kernel = self.param("attention_kernel", basic.uniform, (2 * self.hidden_channels, 2), jnp.float32)
    bias = self.param("attention_bias", bias_init, (2,), jnp.float32)
    # The logits of a position do not depend on how often it is repeated, so that the smaller map is multiplied first.
    logits = (
      x @ kernel[: self.hidden_channels]
      + _resize_nearest(deeper @ kernel[self.hidden_channels :], size)
      + bias[None, None, None, :]
    )
    own, others = jnp.split(jax.nn.sigmoid(logits), 2, axis=-1)
    return own * x + others * _resize_nearest(deeper, size)


class Review(nn.Module):
  """The fusions of all layers."""

  hidden_channels: int
  shapes: tuple[tuple[int, int, int], ...]  # of the teacher's maps, shallow first

  @nn.compact
  def __call__(self, features: tuple[jax.Array, ...], axis_name: str | None = None) -> tuple[jax.Array, ...]:
    """r of each of the student's maps, shallow first, in the teacher's shapes."""
    results: list[jax.Array] = []
    g = None
    for i in reversed(range(len(features))):
      r, g = Fusion(self.hidden_channels, self.shapes[i], name=f"tap{i}")(features[i], g, axis_name)
      results.insert(0, r)
    return tuple(results)


def _hierarchical_context(difference: jax.Array, levels: tuple[int, ...]) -> jax.Array:
  """[b]: mean squares of a map and of its averages at coarser levels."""

  def mean_square(x):
    return jnp.mean(jnp.square(x), axis=(1, 2, 3))

  coarser = [level for level in levels if level < min(difference.shape[1:3])]
  weights = [0.5 ** (i + 1) for i in range(len(coarser))]
  pooled = [mean_square(maps.adaptive_avg_pool(difference, (level, level))) for level in coarser]
  coarser_sum = sum(w * x for w, x in zip(weights, pooled, strict=True))
  return (mean_square(difference) + coarser_sum) / (1 + sum(weights))


def loss(
  student_features: Sequence[jax.Array],
  teacher_features: Sequence[jax.Array],
  *,
  levels: tuple[int, ...] = (4, 2, 1),
) -> jax.Array:
  """Hierarchical context loss, summed over layers.

  Args:
    student_features: r, maps [b, h, w, c] of any shapes.
    teacher_features: equally many, of the same shapes.
    levels: heights and widths that the maps are averaged to, each with half the weight of the one before. Those not
      below the map's height and width are left out.

  Returns:
    [b].
  """
  pairs = list(zip(student_features, teacher_features, strict=True))
  for student, teacher in pairs:
    chex.assert_rank([student, teacher], 4)
    chex.assert_equal_shape([student, teacher])
  differences = [numerics.upcast(student) - numerics.upcast(teacher) for student, teacher in pairs]
  return jnp.sum(jnp.stack([_hierarchical_context(x, levels) for x in differences]), axis=0)


def method(
  *,
  levels: tuple[int, ...] = (4, 2, 1),
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """ReviewKD at all feature layers but the stem, or at the given ones, and at the embedding."""
  if not isinstance(levels, tuple):
    raise ValueError(f"reviewkd: levels must be a tuple of integers, got {levels!r}")
  for level in levels:
    errors.check_positive_integer("reviewkd", levels=level)
  maps.check_layers("reviewkd", student_layers, teacher_layers)

  def layer_maps(student, teacher):
    layers = maps.pair_layers("reviewkd", student, teacher, student_layers, teacher_layers, align_last=True)
    students = [student.features[s] for s, _ in layers] + [student.embedding[:, None, None, :]]
    targets = [teacher.preactivations[t] for _, t in layers] + [teacher.embedding[:, None, None, :]]
    return tuple(map(numerics.upcast, students)), tuple(map(numerics.upcast, targets))

  def review(students, targets):
    return Review(min(512, students[-1].shape[-1]), tuple(x.shape[1:] for x in targets))

  def init(key, student, teachers, labels):
    del labels
    both = jax.eval_shape(layer_maps, student, contract.single_teacher("reviewkd", teachers))
    return adapters.init(review(*both), key, both[0])

  def apply(params, state, student, teachers, context):
    students, targets = layer_maps(student, *teachers)
    reviewed, state = adapters.apply(
      review(students, targets), params, state, students, axis_name=context.axis_name
    )
    return loss(reviewed, targets, levels=levels), state

  return contract.make(
    init,
    apply,
    reads=("preactivations", "embedding"),
    student_reads=("features", "embedding"),
    learns="fusion modules",
  )
