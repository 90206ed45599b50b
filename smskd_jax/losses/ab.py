"""Activation boundaries: student's neurons on the teacher's side of zero, with a margin.

Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019,
https://arxiv.org/abs/1811.03233

  L_i = 3/1000 sum_{l=1..n} 2^(l-n) sum_{h,w,c} max(0, m - s)^2 if t > 0 else max(0, m + s)^2

t is the teacher's map of layer l before its activation, s the student's after its connector, and m the margin: the
alternative loss of the paper's section 3. The factors 3/1000 and 2^(l-n), which halve the loss from each layer to
the one before it, are those of the code of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR
2020), whose weight for this loss is 1; the authors' code has the same ones but for a factor that its user sets. The sum
over the map is as there: the loss grows with the size of the maps.

Differences: paper and codes first train the student without its classifier, for 30 epochs in the second code, by
this loss alone, and then by the labels; here that is a stage of this method without cross-entropy, and a stage after
it. The connector is a 1x1 convolution and batch norm, as the authors', wherever a pair of maps has different
shapes. Of maps of different size the larger is averaged down to the smaller one before it, where the authors have none
and the second code resizes the student's by the convolution of FitNet.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, maps, numerics


def loss(
  student_features: tuple[jax.Array, ...], teacher_features: tuple[jax.Array, ...], *, margin: float = 1.0
) -> jax.Array:
  """Squared distance from the teacher's side of the margin, per example.

  Layers are weighted.

  Args:
    student_features: maps [b, h, w, c] before their activation, after the connectors.
    teacher_features: equally many maps before their activation, of the same shapes.
    margin: m.

  Returns:
    [b].
  """
  chex.assert_rank([*student_features, *teacher_features], 4)

  def layer_loss(student, teacher):
    chex.assert_equal_shape([student, teacher])
    student = numerics.upcast(student)
    side = jnp.where(teacher > 0, student, -student)
    return jnp.sum(jnp.square(jax.nn.relu(margin - side)), axis=(1, 2, 3))

  losses = [layer_loss(s, t) for s, t in zip(student_features, teacher_features, strict=True)]
  return 3e-3 * sum(0.5 ** (len(losses) - i) * value for i, value in enumerate(losses, start=1))


class Connectors(nn.Module):
  """Student's maps in the teacher's channels; maps of equal shape are unchanged."""

  shapes: tuple[tuple[int, int, int], ...]  # h, w, c of the teacher's maps

  @nn.compact
  def __call__(self, features: tuple[jax.Array, ...], axis_name: str | None = None) -> tuple[jax.Array, ...]:
    """Maps [b, h', w', c] of the teacher's channels, and of its size or smaller."""

    def connect(i, x, shape):
      if x.shape[1:] == shape:
        return x
      x = maps.adaptive_avg_pool(x, maps.common_size(x.shape, (1, *shape)))
      return adapters.ConvNorm(shape[-1], name=f"connector_{i}")(x, axis_name)

    return tuple(connect(i, x, s) for i, (x, s) in enumerate(zip(features, self.shapes, strict=True)))


def method(
  *, margin: float = 1.0, student_layers: tuple[int, ...] = (), teacher_layers: tuple[int, ...] = ()
) -> contract.Method:
  """AB from a single teacher; without layers, between all layers but the stem.

  The connectors learn with the student. They normalise by the global batch, and store running statistics.
  """
  errors.check_positive("ab", margin=margin)
  maps.check_layers("ab", student_layers, teacher_layers)

  def modules_and_maps(student, teachers):
    teacher = contract.single_teacher("ab", teachers)
    pairs = maps.pair_layers("ab", student, teacher, student_layers, teacher_layers)
    students = tuple(student.preactivations[s] for s, _ in pairs)
    targets = tuple(teacher.preactivations[t] for _, t in pairs)
    return Connectors(tuple(t.shape[1:] for t in targets)), students, targets

  def init(key, student, teachers, labels):
    del labels
    connectors, students, _ = modules_and_maps(student, teachers)
    return adapters.init(connectors, key, students)

  def apply(params, state, student, teachers, context):
    connectors, students, targets = modules_and_maps(student, teachers)
    connected, state = adapters.apply(connectors, params, state, students, axis_name=context.axis_name)
    targets = tuple(
      maps.adaptive_avg_pool(numerics.upcast(t), s.shape[1:3])
      for s, t in zip(connected, targets, strict=True)
    )
    return loss(connected, targets, margin=margin), state

  return contract.make(init, apply, reads=("preactivations",), learns="connectors where shapes differ")
