"""Flow of solution procedure: inner products between consecutive maps match the teacher's.

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
Learning", CVPR 2017, https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

  L_i = sum_l mean_{c,d} (G_student,i,l - G_teacher,i,l)^2   (equation 2)
  G_i,l[c, d] = mean_{h,w} f_i,l[h, w, c] f_i,l+1[h, w, d]   (equation 1)

over consecutive maps l and l + 1, the stem among them; the larger of the two is averaged down to the smaller, where the
paper has maximum pooling.

Differences: as in the code of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020), the mean
over the matrix takes the place of its sum. Paper and code first train the student without its classifier by this loss
alone, for 30 epochs in that code, and then by the labels alone; here that is a stage of this method without
cross-entropy, and a stage after it. Both need the same channels in both networks. Where they differ, a learned 1x1
convolution brings the student's map to the teacher's channels; `project` = False refuses such pairs.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import adapters, contract, maps, numerics


def loss(student_features: tuple[jax.Array, ...], teacher_features: tuple[jax.Array, ...]) -> jax.Array:
  """Mean squared difference of the flow matrices, summed over consecutive maps, per example.

  Args:
    student_features: two maps or more, [b, h, w, c], shallow first.
    teacher_features: equally many, of the same channels.

  Returns:
    [b].
  """
  chex.assert_rank([*student_features, *teacher_features], 4)

  def flow(bottom, top):
    bottom, top = maps.match_spatial_size(numerics.upcast(bottom), numerics.upcast(top))
    positions = bottom.shape[1] * bottom.shape[2]
    return jnp.einsum("bhwc,bhwd->bcd", bottom, top, precision="highest") / positions

  def flow_loss(student, teacher):
    chex.assert_equal_shape([student, teacher])
    return jnp.mean(jnp.square(student - teacher), axis=(1, 2))

  student = map(flow, student_features[:-1], student_features[1:])
  teacher = map(flow, teacher_features[:-1], teacher_features[1:])
  return sum(flow_loss(s, t) for s, t in zip(student, teacher, strict=True))


def make_multi_layer_method(
  name: str,
  loss: Callable[[tuple[jax.Array, ...], tuple[jax.Array, ...]], jax.Array],
  student_layers: tuple[int, ...],
  teacher_layers: tuple[int, ...],
  *,
  first_layer: int,
  project: bool,
) -> contract.Method:
  """Builds a method whose loss compares several maps of both networks, of equal channels.

  Args:
    name: its name, for errors.
    loss: (student_features, teacher_features) -> [b].
    student_layers: as of `maps.pair_layers`.
    teacher_layers: as of `maps.pair_layers`.
    first_layer: as of `maps.pair_layers`.
    project: True projects student's maps of other channels; False refuses them.
  """
  maps.check_layers(name, student_layers, teacher_layers)
  errors.check_boolean(name, project=project)

  def modules_and_maps(student, teachers):
    teacher = contract.single_teacher(name, teachers)
    pairs = maps.pair_layers(name, student, teacher, student_layers, teacher_layers, first_layer=first_layer)
    if len(pairs) < 2:
      raise ValueError(f"{name}: needs two feature maps or more of each network, got the layers {pairs}")
    for s, t in pairs:
      student_shape, teacher_shape = student.features[s].shape, teacher.features[t].shape
      if not project and student_shape[-1] != teacher_shape[-1]:
        raise ValueError(
          f"{name}: the student's layer {s} is {list(student_shape[1:])}, the teacher's layer {t} "
          f"{list(teacher_shape[1:])}; "
          "take maps of equally many channels, or project = True"
        )
    students, targets = zip(*((student.features[s], teacher.features[t]) for s, t in pairs), strict=True)
    return adapters.Projections(tuple(x.shape[-1] for x in targets), "conv_"), students, targets

  def init(key, student, teachers, labels):
    del labels
    projectors, students, _ = modules_and_maps(student, teachers)
    return adapters.init(projectors, key, students)

  def apply(params, state, student, teachers, context):
    projectors, students, targets = modules_and_maps(student, teachers)
    students, state = adapters.apply(projectors, params, state, students, axis_name=context.axis_name)
    return loss(students, targets), state

  return contract.make(init, apply, reads=("features",), learns="projections where channels differ")


def method(
  *, project: bool = True, student_layers: tuple[int, ...] = (), teacher_layers: tuple[int, ...] = ()
) -> contract.Method:
  """FSP from a single teacher between consecutive layers; without layers, all of them.

  Args:
    project: True projects student's maps with other channels than the teacher's; False refuses them.
    student_layers: layers of the student, shallow first; 0 is the stem.
    teacher_layers: equally many layers of the teacher.
  """
  return make_multi_layer_method("fsp", loss, student_layers, teacher_layers, first_layer=0, project=project)
