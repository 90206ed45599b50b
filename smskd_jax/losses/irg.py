"""Instance relationship graphs: distances between examples, and between layers.

Liu, Cao, Li, Yuan, Hu, Li, Duan, "Knowledge Distillation via Instance Relationship Graph", CVPR 2019,
https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html

  L_i = w_v mean_k (z(s)_ik - z(t)_ik)^2
      + w_e mean_l mean_j (E(s_l)_ij - E(t_l)_ij)^2
      + w_t mean_l (M(s_l, s_{l+1})_i - M(t_l, t_{l+1})_i)^2
  E(f)_ij = |f_i - f_j|^2 / max_{i,j} |f_i - f_j|^2        (edges)
  M(f, g)_i = |f_i - g_i|^2 / max_i |f_i - g_i|^2          (transformation)

with logits z, the vertices. The edges are those of the maps at the chosen layers, flattened, and of the embedding;
transformations are between consecutive layers, of which the larger map is averaged to the size of the smaller one, and
neighbouring channels are averaged where their numbers differ.

Differences: this follows the public code https://github.com/AberHu/Knowledge-Distillation-Zoo, not the authors' own.
Its layers (the last two stages) and weights (0.1, 5 and 5) are the defaults; it averages channels in pairs, which
supposes that they double from layer to layer. The authors' own code (Caffe, https://github.com/yufanLIU/IRG) has an
edge loss on the embedding and, in another file, transformations between the first and the last block of each stage, on
pooled maps; it sums where the mean is taken here, with weights of 0.005, and takes the maximum as given, where here, as
in the code that is followed, it has its gradient. Where all distances are zero, E and M are zero.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, maps, numerics


def _divide_by_max(distance: jax.Array, axis_name: str | None) -> jax.Array:
  """Distances over the largest one of all devices."""
  # Looked up, because the gradient of `jnp.max` compares recomputed numbers for equality, and is NaN where none is.
  own = distance.reshape(-1)[jnp.argmax(distance)]
  device_maxima = contract.gather(own[None], axis_name)
  return numerics.safe_divide(distance, device_maxima[jnp.argmax(device_maxima)])


def edges(feature: jax.Array, axis_name: str | None = None) -> jax.Array:
  """E: squared distances of local rows to all devices' rows, over the largest, [b, n]."""
  rows = numerics.upcast(feature.reshape(feature.shape[0], -1))
  everyone = contract.gather(rows, axis_name)
  # |x|^2 + |y|^2 - 2xy, because the differences themselves, [b, n, d], are too many for whole maps. Measured from one
  # of the examples no |x|^2 exceeds the largest distance, so that in units of it the sum is exact to a few roundings,
  # however far from zero the examples lie; and equal examples are exactly zero apart. Distances do not depend on
  # where the origin is, and it has no gradient.
  origin = jax.lax.stop_gradient(everyone[:1])
  rows, everyone = rows - origin, everyone - origin

  def squares(x):
    return jnp.sum(jnp.square(x), axis=1)

  products = jnp.matmul(rows, everyone.T, precision="highest")
  return _divide_by_max(squares(rows)[:, None] + squares(everyone)[None, :] - 2 * products, axis_name)


def transformation(first: jax.Array, second: jax.Array, axis_name: str | None = None) -> jax.Array:
  """M: squared distance between two maps of each example, over the largest of all, [b]."""
  first, second = maps.match_spatial_size(numerics.upcast(first), numerics.upcast(second))
  channels = min(first.shape[-1], second.shape[-1])

  def flat(x):
    return x.reshape(x.shape[0], -1, x.shape[-1], 1)

  def one_size(x):
    return maps.adaptive_avg_pool(flat(x), (x.shape[1] * x.shape[2], channels))

  distance = jnp.sum(jnp.square(one_size(first) - one_size(second)), axis=(1, 2, 3))
  return _divide_by_max(distance, axis_name)


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  student_embedding: jax.Array,
  teacher_embedding: jax.Array,
  student_features: tuple[jax.Array, ...],
  teacher_features: tuple[jax.Array, ...],
  *,
  vertex_weight: float = 0.1,
  edge_weight: float = 5.0,
  transformation_weight: float = 5.0,
  axis_name: str | None = None,
) -> jax.Array:
  """Weighted sum of the squared errors of vertices, edges and transformations.

  Args:
    student_logits: [b, k].
    teacher_logits: [b, k].
    student_embedding: [b, d].
    teacher_embedding: [b, d'].
    student_features: at least two maps, each [b, h, w, c], shallow first.
    teacher_features: equally many.
    vertex_weight: w_v.
    edge_weight: w_e.
    transformation_weight: w_t.
    axis_name: the axis of devices that the batch is spread over. Rows are this device's examples, columns
      everyone's.

  Returns:
    [b].
  """
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_rank([*student_features, *teacher_features], 4)
  chex.assert_equal_shape_prefix(
    [student_embedding, teacher_embedding, *student_features, *teacher_features], 1
  )

  def edge_loss(student, teacher):
    difference = edges(student, axis_name) - edges(teacher, axis_name)
    return jnp.mean(jnp.square(difference), axis=1)

  def transformation_loss(student, teacher):
    difference = transformation(*student, axis_name) - transformation(*teacher, axis_name)
    return jnp.square(difference)

  def average(f, student, teacher):
    return sum(map(f, student, teacher)) / len(student)

  def steps(features):
    return tuple(zip(features[:-1], features[1:], strict=True))

  vertices = jnp.mean(jnp.square(numerics.upcast(student_logits) - numerics.upcast(teacher_logits)), axis=1)
  student_nodes, teacher_nodes = (
    (*student_features, student_embedding),
    (*teacher_features, teacher_embedding),
  )
  return (
    vertex_weight * vertices
    + edge_weight * average(edge_loss, student_nodes, teacher_nodes)
    + transformation_weight * average(transformation_loss, steps(student_features), steps(teacher_features))
  )


def method(
  *,
  student_layers: tuple[int, ...] = (-2, -1),
  teacher_layers: tuple[int, ...] = (-2, -1),
  vertex_weight: float = 0.1,
  edge_weight: float = 5.0,
  transformation_weight: float = 5.0,
) -> contract.Method:
  """IRG on logits, embeddings and maps at two or more layers; empty: all but the stem."""
  maps.check_layers("irg", student_layers, teacher_layers)
  weights = {
    "vertex_weight": vertex_weight,
    "edge_weight": edge_weight,
    "transformation_weight": transformation_weight,
  }
  errors.check_non_negative("irg", **weights)

  def pairs(student, teacher):
    return maps.pair_layers("irg", student, teacher, student_layers, teacher_layers)

  def check(student, teachers):
    teacher = contract.single_teacher("irg", teachers)
    contract.check_same_classes("irg", student, teacher)
    if len(pairs(student, teacher)) < 2:
      raise ValueError(
        "irg: needs two layers or more of each network, got one pair; set student_layers and teacher_layers"
      )

  def loss_fn(student, teachers, context):
    (teacher,) = teachers
    student_indices, teacher_indices = zip(*pairs(student, teacher), strict=True)
    return loss(
      student.logits,
      teacher.logits,
      student.embedding,
      teacher.embedding,
      tuple(student.features[layer] for layer in student_indices),
      tuple(teacher.features[layer] for layer in teacher_indices),
      axis_name=context.axis_name,
      **weights,
    )

  return contract.stateless(loss_fn, check, reads=("logits", "embedding", "features"))
