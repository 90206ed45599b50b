"""Simple feature distillation: distances of channels' responses to the teacher's.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850

  L_i = sum over layers of n D_i where D_i is the batch's largest, else of 0   (reduction "max", as published)
  L_i = sum over layers of D_i                                                 (reduction "mean")
  D_i = |M(f_student,i) - M(f_teacher,i) + eps|

M takes each channel's maximum over the positions of the map before the activation; the norm runs over channels. As
published, at each layer only the worst of the n examples of the batch counts: the mean of L_i is the sum over layers of
max_i D_i. Among equal distances the first example takes it. The survey reports that the method stays below training
without a teacher; "mean" is the variant that learns from every example.

Differences: the survey's code has a layer at the first convolution's output too, before its batch norm. Our first layer
is the stem, after its activation where a network gives no other. That code needs networks of equal channels; here, only
where they differ, a learned 1x1 convolution takes the student's map to the teacher's. The norm over channels is what
PyTorch computed at the time of the survey; with newer versions the same code takes another one.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, maps, numerics


def _distance(student: jax.Array, teacher: jax.Array, eps: float) -> jax.Array:
  """D, [b], at one layer."""
  chex.assert_rank([student, teacher], 4)
  chex.assert_equal(student.shape[::3], teacher.shape[::3])
  return numerics.safe_norm(_global_max(student) - _global_max(teacher) + eps)


def _global_max(x: jax.Array) -> jax.Array:
  """The largest entry [b, c] of each channel.

  Looked up, because the gradient of `jnp.max` compares recomputed numbers for equality, and is NaN where none is.
  """
  b, h, w, c = x.shape
  rows = numerics.upcast(x).reshape(b, h * w, c)
  return jnp.take_along_axis(rows, jnp.argmax(rows, axis=1, keepdims=True), axis=1)[:, 0]


def loss(
  student_features: Sequence[jax.Array],
  teacher_features: Sequence[jax.Array],
  *,
  eps: float = 1e-6,
  reduction: str = "max",
  axis_name: str | None = None,
) -> jax.Array:
  """Distances between channel maxima.

  Args:
    student_features: maps [b, h, w, c], before the activation.
    teacher_features: equally many, with the same channels; height and width may differ.
    eps: added to each difference, as PyTorch's pairwise distance does.
    reduction: "max", the largest of the batch at each layer, or "mean".
    axis_name: the axis of devices that the batch is spread over.

  Returns:
    [b].
  """
  pairs = zip(student_features, teacher_features, strict=True)
  distance = jnp.stack([_distance(student, teacher, eps) for student, teacher in pairs], axis=1)
  if reduction == "mean":
    return jnp.sum(distance, axis=1)
  everyone = contract.gather(jax.lax.stop_gradient(distance), axis_name)  # [n, layers]
  b, n = len(distance), len(everyone)
  row = contract.local_offset(b, axis_name) + jnp.arange(b)
  is_largest = row[:, None] == jnp.argmax(everyone, axis=0)[None, :]
  return n * jnp.sum(jnp.where(is_largest, distance, 0.0), axis=1)


def method(
  *,
  eps: float = 1e-6,
  reduction: str = "max",
  student_layers: tuple[int, ...] = (),
  teacher_layers: tuple[int, ...] = (),
) -> contract.Method:
  """SFD at all layers with the stem, or at the given ones."""
  errors.check_non_negative("sfd", eps=eps)
  errors.check_choice("sfd", ("max", "mean"), reduction=reduction)
  maps.check_layers("sfd", student_layers, teacher_layers)

  def layer_maps(student, teacher):
    layers = maps.pair_layers("sfd", student, teacher, student_layers, teacher_layers, first_layer=0)
    students = tuple(student.preactivations[s] for s, _ in layers)
    return students, tuple(teacher.preactivations[t] for _, t in layers)

  def projections(teacher_maps):
    return adapters.Projections(tuple(x.shape[-1] for x in teacher_maps))

  def init(key, student, teachers, labels):
    del labels
    students, teacher_maps = layer_maps(student, contract.single_teacher("sfd", teachers))
    return adapters.init(projections(teacher_maps), key, students)

  def apply(params, state, student, teachers, context):
    students, teacher_maps = layer_maps(student, *teachers)
    students, state = adapters.apply(
      projections(teacher_maps), params, state, students, axis_name=context.axis_name
    )
    return loss(students, teacher_maps, eps=eps, reduction=reduction, axis_name=context.axis_name), state

  return contract.make(init, apply, reads=("preactivations",), learns="projections where channels differ")
