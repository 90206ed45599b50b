"""Similarity-preserving distillation: similarities of examples match the teacher's.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, https://arxiv.org/abs/1907.09682

  L_i = (1 / b) sum_j (G(s)_ij - G(t)_ij)^2, summed over pairs of layers   (equation 4)
  G(f)_ij = <f_i, f_j> / sqrt(sum_k <f_i, f_k>^2)                        (equations 2 and 3)

with f_i the whole map of example i, flattened. The mean over the batch is the squared Frobenius norm over b^2. Maps of
any two sizes can be compared, because only b x b matrices are.

Differences: rows of the matrix of inner products whose norm is below 1e-12, as of maps that are zero, stay zero. The
paper and the code of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020) compare the last maps
of both networks, as the defaults do; some public code averages over several stages, where the paper and this module
sum. The published weight, 3000, goes with the division by b^2, and so depends on the size of the batch.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax.losses import contract, maps, numerics


def _similarity(feature: jax.Array, mask: jax.Array | None, axis_name: str | None) -> jax.Array:
  """Inner products of local maps with all devices', [b, n], each row of norm 1.

  Zero outside the mask.
  """
  rows = numerics.upcast(feature.reshape(feature.shape[0], -1))
  rows = rows if mask is None else jnp.where(mask[:, None], rows, 0)
  products = jnp.matmul(rows, contract.gather(rows, axis_name).T, precision="highest")
  return numerics.safe_divide(products, numerics.safe_norm(products)[:, None])


def loss(
  student_features: tuple[jax.Array, ...],
  teacher_features: tuple[jax.Array, ...],
  *,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  """Squared distance of the rows of the two similarity matrices, summed over pairs of maps.

  Args:
    student_features: maps, each [b, h, w, c].
    teacher_features: equally many maps, each [b, h', w', c'].
    mask: [b], bool, as of `Context`.
    axis_name: the axis of devices that the batch is spread over. Rows are this device's examples, columns
      everyone's.

  Returns:
    [b]; zero for a batch of one.
  """
  chex.assert_rank([*student_features, *teacher_features], 4)
  chex.assert_equal_shape_prefix([*student_features, *teacher_features], 1)

  def layer_loss(student, teacher):
    difference = _similarity(student, mask, axis_name) - _similarity(teacher, mask, axis_name)
    return contract.mean_over_mask(jnp.square(difference), mask, axis_name)

  return sum(layer_loss(*pair) for pair in zip(student_features, teacher_features, strict=True))


def method(
  *, student_layers: tuple[int, ...] = (-1,), teacher_layers: tuple[int, ...] = (-1,)
) -> contract.Method:
  """SP at pairs of layers (0: stem, -1: last); empty tuples take all but the stem."""
  maps.check_layers("sp", student_layers, teacher_layers)

  def pairs(student, teacher):
    return maps.pair_layers("sp", student, teacher, student_layers, teacher_layers)

  def check(student, teachers):
    pairs(student, contract.single_teacher("sp", teachers))

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    student_indices, teacher_indices = zip(*pairs(student, teacher), strict=True)
    return loss(
      tuple(student.features[layer] for layer in student_indices),
      tuple(teacher.features[layer] for layer in teacher_indices),
      mask=context.mask,
      axis_name=context.axis_name,
    )

  def spots(student, teachers):
    return maps.layer_spots(pairs(student, contract.single_teacher("sp", teachers)), method)

  return contract.stateless(loss_fn, check, reads=("features",), spots=spots)
