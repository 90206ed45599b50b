"""Attentive feature distillation: learned attention weights the teacher's channels.

Wang, Gao, Zhao, Li, Dou, Xu, "Pay Attention to Features, Transfer Learn Faster CNNs", ICLR 2020,
https://openreview.net/forum?id=ryxyCeHtPB

  L_i = mean over layers of sum_c rho_i,c mean_{h,w} (n(f_student,i)_c - n(f_teacher,i)_c)^2
  n(f)_c = f_c / (|f_c| + eps),  the norm over positions
  rho_i = s / sum_c s,  s = sigmoid(W_2 ReLU(W_1 mean_{h,w} f_teacher,i + b_1) + b_2)

W and b, for each layer, learn with the student, and read the teacher alone. Because nothing holds them, the loss can
also fall by turning the attention to the channels that agree already.

Differences: the paper's method selects channels as well (AFDS), to make transfer-learned networks cheaper; this is its
first half, as the public code of the Knowledge-Distillation-Zoo (AberHu) has it, the attention included: it reports
that the paper's, which reads each channel's whole map, was unstable, and takes a squeeze-and-excitation block instead.
Its weight is 500, for the mean over three layers, as here. Its maps have equal shapes; here the larger map of
a pair is averaged down to the smaller one and, only where the channels differ, a learned 1x1 convolution takes the
student's to the teacher's.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, maps, numerics


class Attention(nn.Module):
  """Squeeze-and-excitation block that computes weights of the teacher's channels."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """rho [b, c] of a map [b, h, w, c]."""
    kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    mean = jnp.mean(x, axis=(1, 2))
    hidden = nn.relu(nn.Dense(self.hidden, kernel_init=kernel_init, name="linear1")(mean))
    logits = nn.Dense(x.shape[-1], kernel_init=kernel_init, name="linear2")(hidden)
    # The sigmoids over their sum, in logarithms: all of them may be too small for a number.
    return jax.nn.softmax(jax.nn.log_sigmoid(logits))


class AfdModules(nn.Module):
  """Projections of the student's maps, and an attention for each of the teacher's."""

  hidden: tuple[int, ...]  # of each attention

  @nn.compact
  def __call__(
    self, students: tuple[jax.Array, ...], teachers: tuple[jax.Array, ...], axis_name: str | None = None
  ) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The student's maps in the teacher's channels, and rho [b, c] at each layer."""
    del axis_name
    projections = adapters.Projections(tuple(x.shape[-1] for x in teachers), name="projections")
    pairs = enumerate(zip(self.hidden, teachers, strict=True))
    return projections(students), tuple(Attention(h, name=f"attention{i}")(x) for i, (h, x) in pairs)


def _normalize_channels(x: jax.Array, eps: float) -> jax.Array:
  """Each channel of a map [b, h, w, c] over its norm, as [b, c, h w]."""
  x = jnp.swapaxes(numerics.upcast(x).reshape(x.shape[0], -1, x.shape[-1]), 1, 2)
  return x / (numerics.safe_norm(x) + eps)[:, :, None]


def loss(
  student_feature: jax.Array, teacher_feature: jax.Array, attention: jax.Array, *, eps: float = 1e-6
) -> jax.Array:
  """Squared differences of normalised channels, weighted by the attention, at one layer.

  Args:
    student_feature: [b, h, w, c].
    teacher_feature: [b, h, w, c].
    attention: [b, c], rho; >= 0, with sum 1.
    eps: added to the norms.

  Returns:
    [b].
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape([student_feature, teacher_feature])
  chex.assert_shape(attention, teacher_feature.shape[::3])
  square = jnp.square(_normalize_channels(student_feature, eps) - _normalize_channels(teacher_feature, eps))
  return jnp.sum(numerics.upcast(attention) * jnp.mean(square, axis=-1), axis=-1)


def method(
  *,
  hidden_ratio: float = 1.0,
  eps: float = 1e-6,
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """AFD at all feature layers but the stem, or at the given ones.

  An attention's hidden layer has `hidden_ratio` times the channels of the teacher's map, and at least one.
  """
  errors.check_positive("afd", hidden_ratio=hidden_ratio, eps=eps)
  maps.check_layers("afd", student_layers, teacher_layers)

  def matched(student, teacher):
    return maps.match_layers("afd", student, teacher, student_layers, teacher_layers)

  def parts(teacher_maps):
    return AfdModules(tuple(max(1, int(hidden_ratio * x.shape[-1])) for x in teacher_maps))

  def init(key, student, teachers, labels):
    del labels
    both = jax.eval_shape(matched, student, contract.single_teacher("afd", teachers))
    return adapters.init(parts(both[1]), key, *both)

  def apply(params, state, student, teachers, context):
    both = matched(student, *teachers)
    (students, attentions), state = adapters.apply(
      parts(both[1]), params, state, *both, axis_name=context.axis_name
    )
    layer_losses = [loss(*layer, eps=eps) for layer in zip(students, both[1], attentions, strict=True)]
    return sum(layer_losses) / len(layer_losses), state

  return contract.make(init, apply, reads=("features",), learns="attention over channels")
