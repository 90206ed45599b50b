"""Attention transfer: the student's maps are large where the teacher's are.

Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural
Networks via Attention Transfer", ICLR 2017, https://arxiv.org/abs/1612.03928

  L_i = sum_taps mean_{h,w} (Q_student,i / |Q_student,i| - Q_teacher,i / |Q_teacher,i|)^2   (equation 2)
  Q_i[h, w] = mean_c f_i[h, w, c]^p

|Q| is the Euclidean norm over the positions. Differences: as in the authors' code and in that of "Contrastive
Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020), the mean of the squares takes the place of half
the Euclidean distance, and the mean over channels that of the sum, which the norm takes away again. The paper
takes powers of |f|, that code and this one of f, which differs for odd p on maps with negative values. A
map of zeros has the attention zero. The larger of two maps is averaged down to the smaller, as in that code. The
published weight of 1000 is for these means.

The attention term of the survey "The State of Knowledge Distillation for Classification" (Ruffy, Chahal, 2019,
https://arxiv.org/abs/1912.10850) is this one with p = 2 on the maps of all stages without the stem, the default layers;
its weight of 50 applies here unchanged. The survey's code computes it beside RKD, and never adds it to what it
minimises. Its last version pairs each stage with the teacher's next one, whose map has another size, and ends there in
an error; the versions before pair equal stages, as here.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, maps, numerics


def attention(feature: jax.Array, p: int = 2) -> jax.Array:
  """The mean over channels of the p-th powers, of Euclidean norm 1 over the positions.

  Args:
    feature: [b, h, w, c].
    p: the power.

  Returns:
    [b, h w]; zeros where the map is zero.
  """
  # The norm takes every factor away; this one keeps the powers of large and small maps in the range of float32.
  powers = numerics.normalize_scale(numerics.upcast(feature)) ** p
  q = jnp.mean(powers, axis=-1).reshape(feature.shape[0], -1)
  return numerics.safe_divide(q, numerics.safe_norm(q)[:, None])


def loss(
  student_features: tuple[jax.Array, ...], teacher_features: tuple[jax.Array, ...], *, p: int = 2
) -> jax.Array:
  """Mean squared difference of the attention maps, summed over layers, per example.

  Args:
    student_features: maps [b, h, w, c].
    teacher_features: equally many maps [b, h', w', c'].
    p: the power.

  Returns:
    [b].
  """
  chex.assert_rank([*student_features, *teacher_features], 4)

  def layer_loss(student, teacher):
    student, teacher = maps.match_spatial_size(numerics.upcast(student), numerics.upcast(teacher))
    return jnp.mean(jnp.square(attention(student, p) - attention(teacher, p)), axis=-1)

  return sum(layer_loss(s, t) for s, t in zip(student_features, teacher_features, strict=True))


def method(
  *, p: int = 2, student_layers: tuple[int, ...] = (), teacher_layers: tuple[int, ...] = ()
) -> contract.Method:
  """AT from a single teacher; without layers, between all layers but the stem."""
  errors.check_positive_integer("at", p=p)
  maps.check_layers("at", student_layers, teacher_layers)

  def pairs(student, teachers):
    return maps.pair_layers(
      "at", student, contract.single_teacher("at", teachers), student_layers, teacher_layers
    )

  def loss_fn(student, teachers, context):
    del context
    students = tuple(student.features[s] for s, _ in pairs(student, teachers))
    return loss(students, tuple(teachers[0].features[t] for _, t in pairs(student, teachers)), p=p)

  def spots(student, teachers):
    return maps.layer_spots(pairs(student, teachers), functools.partial(method, p=p))

  return contract.stateless(loss_fn, pairs, reads=("features",), spots=spots)
