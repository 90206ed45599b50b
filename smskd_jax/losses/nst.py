"""Neuron selectivity transfer: distributions of channels over positions match.

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
https://arxiv.org/abs/1707.01219

  L_i = sum_taps mean_{a,a'} k(t_a, t_a') + mean_{c,c'} k(s_c, s_c') - 2 mean_{c,a} k(s_c, t_a)
  k(x, y) = (x . y)^2

s_c is the student's channel c of example i as a vector over the positions, of norm 1, and t_a the teacher's channel
a: L is the squared maximum mean discrepancy of the two sets, for the polynomial kernel of degree 2 without offset.
The linear and the Gaussian kernel of the paper are not here. It is computed in the form with the smaller matrices,
those of channels or those of positions; with positions it is |G_student - G_teacher|^2, summed over all entries, where
G = mean_c x_c x_c^T.

Differences: the paper halves the term. As in the code of "Contrastive Representation Distillation" (Tian,
Krishnan, Isola, ICLR 2020), it is applied at all stages, where the paper takes one layer, and the larger of two
maps is averaged down to the smaller, where the paper interpolates. A channel of zeros is a zero vector.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import contract, maps, numerics


def _mmd_over_channels(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """[b], from all pairs of channels [b, c, n]."""

  def mean_kernel(x, y):
    return jnp.mean(jnp.square(jnp.einsum("bcn,bdn->bcd", x, y, precision="highest")), axis=(1, 2))

  return mean_kernel(teacher, teacher) + mean_kernel(student, student) - 2 * mean_kernel(student, teacher)


def _mmd_over_positions(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """[b], the same from all pairs of positions."""

  def gram(x):
    return jnp.einsum("bcn,bcm->bnm", x, x, precision="highest") / x.shape[1]

  return jnp.sum(jnp.square(gram(student) - gram(teacher)), axis=(1, 2))


def _normalized_channels(feature: jax.Array) -> jax.Array:
  """The channels [b, c, h w] of a map, each of norm 1 or zero."""
  b, h, w, c = feature.shape
  x = jnp.swapaxes(feature.reshape(b, h * w, c), 1, 2)
  return numerics.safe_divide(x, numerics.safe_norm(x)[..., None])


def loss(student_features: tuple[jax.Array, ...], teacher_features: tuple[jax.Array, ...]) -> jax.Array:
  """Squared maximum mean discrepancy of the channels, summed over layers, per example.

  Args:
    student_features: maps [b, h, w, c].
    teacher_features: equally many maps [b, h', w', c'].

  Returns:
    [b]; takes memory for b min(h w, max(c, c'))^2 numbers.
  """
  chex.assert_rank([*student_features, *teacher_features], 4)

  def layer_loss(student, teacher):
    student, teacher = maps.match_spatial_size(numerics.upcast(student), numerics.upcast(teacher))
    student, teacher = _normalized_channels(student), _normalized_channels(teacher)
    few_positions = student.shape[2] <= max(student.shape[1], teacher.shape[1])
    return (_mmd_over_positions if few_positions else _mmd_over_channels)(student, teacher)

  return sum(layer_loss(s, t) for s, t in zip(student_features, teacher_features, strict=True))


def method(*, student_layers: tuple[int, ...] = (), teacher_layers: tuple[int, ...] = ()) -> contract.Method:
  """NST from a single teacher; without layers, between all layers but the stem."""
  maps.check_layers("nst", student_layers, teacher_layers)

  def pairs(student, teachers):
    return maps.pair_layers(
      "nst", student, contract.single_teacher("nst", teachers), student_layers, teacher_layers
    )

  def loss_fn(student, teachers, context):
    del context
    students = tuple(student.features[s] for s, _ in pairs(student, teachers))
    return loss(students, tuple(teachers[0].features[t] for _, t in pairs(student, teachers)))

  def spots(student, teachers):
    return maps.layer_spots(pairs(student, teachers), method)

  return contract.stateless(loss_fn, pairs, reads=("features",), spots=spots)
