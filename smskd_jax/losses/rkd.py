"""Relational knowledge distillation: distances and angles between examples match.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, https://arxiv.org/abs/1904.05068

  L_i = w_d mean_j h(D(s)_ij - D(t)_ij) + w_a mean_{j,k} h(A(s)_ijk - A(t)_ijk)
  D(e)_ij = |e_i - e_j| / mean_{i != j} |e_i - e_j|        (distance-wise, section 3.2.1)
  A(e)_ijk = cos of the angle at e_i between e_j and e_k   (angle-wise, section 3.2.2)

with h the Huber function of threshold 1.

Differences: the paper sums, this module averages; the average is over all i, j and k, equal ones too, as in the
authors' code. Embeddings less than 1e-12 apart count as equal, of distance zero and of angles with cosine zero, where
that code lets no distance fall below 1e-6.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, numerics

# The b x n x n angles of a large batch are never stored whole: beyond so many examples j, they are computed for some of
# them at a time, and so are anchors i, fewer the more examples there are. The usual batch of 64 is one piece, which
# saves computing the angles twice.
CHUNK, ROWS, PAIRS = 64, 512, 1 << 17  # anchors at most, examples j, and anchors times examples


def _relations(
  anchor: jax.Array, everyone: jax.Array, related: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Relations of one anchor [d] to all examples [n, d]: distances [n] and directions [n, d].

  Both are zero for examples that are not `related` ([n], bool; None: all are), which then add nothing to any sum.
  """
  # The offsets themselves: their inner products from |x|^2 + |y|^2 - 2xy would cancel in float32, and the
  # differences of pairs of them are never needed.
  offset = everyone - anchor[None, :]
  offset = offset if related is None else jnp.where(related[:, None], offset, 0)
  distance = numerics.safe_norm(offset)
  return distance, numerics.safe_divide(offset, distance[:, None])


def _angle_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean Huber loss of the cosines between pairs of directions, [n, d] and [n, d']."""

  def row_loss(row):
    def cosine(one, all):
      return jnp.einsum("d,kd->k", one, all, precision="highest")

    return jnp.mean(numerics.huber(cosine(row[0], student) - cosine(row[1], teacher)))

  return jnp.mean(_map_rows(row_loss, (student, teacher), ROWS))


def _map_rows(f, rows, size):
  """Maps f over rows, in recomputed chunks if there are more than `size`."""
  if jax.tree.leaves(rows)[0].shape[0] <= size:
    return jax.vmap(f)(rows)
  return jax.lax.map(jax.checkpoint(f), rows, batch_size=size)


def _divide_by_mean(distance: jax.Array, count: jax.Array | int, axis_name: str | None) -> jax.Array:
  """Distances [b, n] over the mean of all those between `count` different examples."""
  others = jnp.maximum(count - 1, 1) if isinstance(count, jax.Array) else max(count - 1, 1)
  row_means = contract.pmean(jnp.mean(jnp.sum(distance, axis=1)), axis_name)
  mean_distance = row_means * (distance.shape[1] / count) / others
  return numerics.safe_divide(distance, mean_distance)


def loss(
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  *,
  distance_weight: float = 25.0,
  angle_weight: float = 50.0,
  mask: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  """Huber loss of the relations between each example and all examples.

  Args:
    student_embedding: [b, d].
    teacher_embedding: [b, d']; the dimensions may differ.
    distance_weight: w_d. The CIFAR-100 literature uses 25 and 50.
    angle_weight: w_a.
    mask: [b], bool, as of `Context`.
    axis_name: the axis of devices that the batch is spread over. The rows i are this device's examples, j and
      k are everyone's.

  Returns:
    [b]; zero for a batch of one, which has no relations. With n the global batch, it takes memory for PAIRS (ROWS + d)
    numbers at most, or n (ROWS + d) where n is more than PAIRS: not for the square of n.
  """
  chex.assert_rank([student_embedding, teacher_embedding], 2)
  chex.assert_equal_shape_prefix([student_embedding, teacher_embedding], 1)
  embeddings = numerics.upcast(student_embedding), numerics.upcast(teacher_embedding)
  students, teachers = (contract.gather(x, axis_name) for x in embeddings)
  everyone = None if mask is None else contract.gather(mask, axis_name)
  count: jax.Array | int = len(students)
  if mask is not None:
    count = contract.num_masked(mask, axis_name).astype(students.dtype)

  def anchor_loss(anchor):
    student, teacher, is_anchor = anchor
    related = None if everyone is None else everyone & is_anchor
    student_distance, student_direction = _relations(student, students, related)
    teacher_distance, teacher_direction = _relations(teacher, teachers, related)
    return student_distance, teacher_distance, _angle_loss(student_direction, teacher_direction)

  anchors = (*embeddings, mask)
  *distances, by_angle = _map_rows(anchor_loss, anchors, max(1, min(CHUNK, PAIRS // len(students))))
  student_distance, teacher_distance = (_divide_by_mean(x, count, axis_name) for x in distances)
  by_distance = jnp.mean(numerics.huber(student_distance - teacher_distance), axis=1)
  if mask is not None:  # means over all images become means over those of the mask
    fraction = len(students) / count
    by_distance, by_angle = fraction * by_distance, jnp.square(fraction) * by_angle
  return distance_weight * by_distance + angle_weight * by_angle


def method(*, distance_weight: float = 25.0, angle_weight: float = 50.0) -> contract.Method:
  """RKD between the embeddings of the student and of a single teacher."""
  errors.check_non_negative("rkd", distance_weight=distance_weight, angle_weight=angle_weight)

  def check(student, teachers):
    del student
    contract.single_teacher("rkd", teachers)

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    return loss(
      student.embedding,
      teacher.embedding,
      distance_weight=distance_weight,
      angle_weight=angle_weight,
      mask=context.mask,
      axis_name=context.axis_name,
    )

  return contract.stateless(loss_fn, check, reads=("embedding",), spots=contract.embedding_spot)
