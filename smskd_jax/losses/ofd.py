"""Overhaul of feature distillation: maps match the teacher's down to a margin.

Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
https://arxiv.org/abs/1904.01866

  L_i = sum over layers j = 1..n of 2^(j - n) sum_{h,w,c} d(r(f_student,i), max(f_teacher,i, m_c))
  d(s, t) = 0 where s <= t <= 0, else (s - t)^2
  m_c = E[x | x < 0],  x being the teacher's responses in channel c

f is taken before the activation; r, learned with the student, is a 1x1 convolution and batch norm. The margin m_c of
`margin="batch_norm"` is that of a normal x with the scale s and bias b of the batch norm before the activation,
b - s phi(b/s) / Phi(-b/s), and -3s where x is positive but for one time in a thousand. That of `margin="running"` is
the mean of the negative responses that the teacher has given so far; it is also used at layers which do not come from a
batch norm. The usual weight is 1e-3 (1e-4 on ImageNet), for the sum over positions and channels.

Differences: the authors' code, and others after it, leave the teacher's batch norm in training mode while it teaches;
here it is in evaluation mode, as for every other method, and published numbers may depend on that. That code pairs
stages of one size; where the sizes differ the larger map is averaged down to the smaller one (the student's before r).
Of networks with different numbers of stages the last ones are paired, as in mdistiller. At residual networks the map is
the sum of a batch norm and a shortcut, and the margin that of the former, as the authors have it.
"""

from typing import NamedTuple

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.scipy import stats

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, maps, numerics
from smskd_jax.types import MethodVariables, Norm, Outputs


class NegativeStats(NamedTuple):
  """Negative responses of the teacher by channel, means over all positions and images so far."""

  mean: jax.Array  # [c], of min(x, 0)
  fraction: jax.Array  # [c], of x < 0


class OfdState(NamedTuple):
  """Memory of OFD."""

  connectors: dict[str, jax.Array]  # the running statistics of r
  steps: jax.Array  # [], int32
  negatives: dict[str, NegativeStats]  # of the layers whose margin is a running mean


class Connectors(nn.Module):
  """r for each pair of maps."""

  channels: tuple[int, ...]  # of the teacher's maps

  @nn.compact
  def __call__(self, features: tuple[jax.Array, ...], axis_name: str | None = None) -> tuple[jax.Array, ...]:
    """The student's maps, each [b, h, w, c of the teacher]."""

    def connector(i, c):
      return adapters.ConvNorm(c, kernel_init=basic.he_normal, name=f"tap{i}")

    pairs = enumerate(zip(features, self.channels, strict=True))
    return tuple(connector(i, c)(x, axis_name) for i, (x, c) in pairs)


def margin(scale: jax.Array, bias: jax.Array) -> jax.Array:
  """The mean of the negative part of normal responses.

  Args:
    scale: [c], of the batch norm before the activation; its sign does not matter.
    bias: [c].

  Returns:
    [c], <= 0.
  """
  scale, bias = jnp.abs(numerics.upcast(scale)), numerics.upcast(bias)
  # Beyond these bounds the result no longer depends on z: below, -3s is taken; above, the density is zero.
  z = jnp.clip(-bias / jnp.maximum(scale, 1e-12), -4.0, 40.0)
  probability = stats.norm.cdf(z)
  return jnp.where(probability > 0.001, bias - scale * stats.norm.pdf(z) / probability, -3 * scale)


def loss(student_feature: jax.Array, teacher_feature: jax.Array, margin: jax.Array) -> jax.Array:
  """Partial squared distance at one layer, summed over positions and channels.

  Args:
    student_feature: [b, h, w, c], after r.
    teacher_feature: [b, h, w, c], before the activation.
    margin: [c], <= 0.

  Returns:
    [b].
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape([student_feature, teacher_feature])
  student = numerics.upcast(student_feature)
  target = jnp.maximum(numerics.upcast(teacher_feature), numerics.upcast(margin)[None, None, None, :])
  counts = (student > target) | (target > 0)
  return jnp.sum(jnp.where(counts, jnp.square(student - target), 0.0), axis=(1, 2, 3))


def _norm(teacher: Outputs, layer: int, margin: str) -> Norm | None:
  """The batch norm that gives the margin at a layer, if any."""
  return teacher.norms[layer] if margin == "batch_norm" and teacher.norms else None


def _margin(norm: Norm | None, negatives: NegativeStats | None) -> jax.Array:
  """[c] at one layer."""
  if norm is not None:
    return margin(*norm)
  assert negatives is not None
  return numerics.safe_divide(negatives.mean, negatives.fraction)


def _initial_state(connectors: dict[str, jax.Array], responses: dict[str, jax.Array]) -> OfdState:
  """State before the first step."""

  def zeros(x):
    return jnp.zeros(x.shape[-1:], jnp.promote_types(x.dtype, jnp.float32))

  negatives = {name: NegativeStats(zeros(x), zeros(x)) for name, x in responses.items()}
  return OfdState(connectors, jnp.zeros((), jnp.int32), negatives)


def _update_negatives(
  state: OfdState, responses: dict[str, jax.Array], axis_name: str | None
) -> tuple[jax.Array, dict[str, NegativeStats]]:
  """Steps and negatives with a further batch of the teacher's maps, each [b, h, w, c]."""

  def batch_mean(x):
    return jnp.mean(x, axis=(0, 1, 2))

  def negatives_of(x):
    return NegativeStats(batch_mean(jnp.minimum(x, 0)), batch_mean((x < 0).astype(x.dtype)))

  new = {name: negatives_of(numerics.upcast(x)) for name, x in responses.items()}
  steps = state.steps + 1

  def move(old, x):
    return old + (x - old) / steps

  return steps, jax.tree.map(move, state.negatives, contract.pmean(new, axis_name))


def method(
  *,
  margin: str = "batch_norm",
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """OFD at all feature layers but the stem, or at the given ones."""
  errors.check_choice("ofd", ("batch_norm", "running"), margin=margin)
  maps.check_layers("ofd", student_layers, teacher_layers)

  def pairs(student, teacher):
    return maps.pair_layers("ofd", student, teacher, student_layers, teacher_layers, align_last=True)

  def matched(student, teacher):
    students, teacher_maps = (jax.tree.map(numerics.upcast, x.preactivations) for x in (student, teacher))
    matched_maps = (maps.match_spatial_size(students[s], teacher_maps[t]) for s, t in pairs(student, teacher))
    return tuple(zip(*matched_maps, strict=True))

  def without_norm(student, teacher):
    layers = enumerate(t for _, t in pairs(student, teacher))
    return {f"tap{i}": teacher.preactivations[t] for i, t in layers if _norm(teacher, t, margin) is None}

  def connectors(teacher_maps):
    return Connectors(tuple(x.shape[-1] for x in teacher_maps))

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("ofd", teachers)
    students, teacher_maps = jax.eval_shape(matched, student, teacher)
    params, statistics = adapters.init(connectors(teacher_maps), key, students)
    return MethodVariables(params, _initial_state(statistics, without_norm(student, teacher)))

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    both = matched(student, teacher)
    steps, negatives = _update_negatives(state, without_norm(student, teacher), context.axis_name)
    students, statistics = adapters.apply(
      connectors(both[1]), params, state.connectors, both[0], axis_name=context.axis_name
    )
    norms = [_norm(teacher, t, margin) for _, t in pairs(student, teacher)]
    margins = [_margin(norm, negatives.get(f"tap{i}")) for i, norm in enumerate(norms)]
    layer_losses = [loss(*layer) for layer in zip(students, both[1], margins, strict=True)]
    weights = [0.5 ** (len(layer_losses) - 1 - i) for i in range(len(layer_losses))]
    return sum(w * x for w, x in zip(weights, layer_losses, strict=True)), OfdState(
      statistics, steps, negatives
    )

  reads = ("preactivations", "norms") if margin == "batch_norm" else ("preactivations",)
  return contract.make(init, apply, reads=reads, student_reads=("preactivations",), learns="connectors")
