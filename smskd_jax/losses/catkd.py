"""Class attention transfer: the student's class activation maps match the teacher's.

Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023,
https://arxiv.org/abs/2304.12777

  L_i = mean_{c,r} (A_r(M(f_student,i)_c) - A_r(M(f_teacher,i)_c))^2
  M(f)_c = sum_d f_d W_dc + b_c, at each position

f is the map whose mean the classifier reads, W and b the classifier. M(f)_c is the activation map of class c; its mean
over positions is the logit. A_r averages a map to r x r positions and, if asked for, divides it by its Euclidean norm
over them.

Differences: the paper moves the classifier, as a 1x1 convolution, before the pooling of both networks, which is the
same function; here the maps are computed from the networks as they are. The classifier of the authors' code has no
bias; those of this package have one, which is part of the map at every position. Left out: the transfer of binarised
maps and of the maps of some classes only, which the paper uses for analysis. The authors' outer weights on CIFAR-100
differ from pair to pair, 0.7 to 15 without the norm and 15 to 600 with it, as does r, 2 or 4.
"""

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.losses import contract, maps, numerics
from smskd_jax.types import Head


def class_activation_maps(final_map: jax.Array, head: Head) -> jax.Array:
  """The classifier at every position, [b, h, w, k]; its mean over positions are the logits.

  Args:
    final_map: [b, h, w, d].
    head: the linear classifier of [b, d].
  """
  final_map, kernel, bias = map(numerics.upcast, (final_map, head.kernel, head.bias))
  return jnp.tensordot(final_map, kernel, 1, precision="highest") + bias[None, None, None]


def loss(
  student_cam: jax.Array, teacher_cam: jax.Array, *, size: int = 2, normalize: bool = False
) -> jax.Array:
  """Mean squared error of the class activation maps, per example.

  Args:
    student_cam: [b, h, w, k].
    teacher_cam: [b, h', w', k].
    size: r, the height and width that both are averaged to (or repeated to, where they are smaller).
    normalize: True divides the map of each class by its norm; a map of zeros is unchanged.

  Returns:
    [b].
  """
  chex.assert_rank([student_cam, teacher_cam], 4)
  chex.assert_equal_shape([student_cam, teacher_cam], dims=(0, 3))

  def transferred(cam):
    b, _, _, k = cam.shape
    rows = maps.adaptive_avg_pool(numerics.upcast(cam), (size, size)).reshape(b, size**2, k).swapaxes(1, 2)
    return numerics.safe_divide(rows, numerics.safe_norm(rows)[:, :, None]) if normalize else rows

  return jnp.mean(jnp.square(transferred(student_cam) - transferred(teacher_cam)), axis=(1, 2))


def method(*, size: int = 2, normalize: bool = False) -> contract.Method:
  """CAT-KD from a single teacher. The student's classifier learns from it too."""
  errors.check_positive_integer("catkd", size=size)
  errors.check_boolean("catkd", normalize=normalize)

  def check(student, teachers):
    teacher = contract.single_teacher("catkd", teachers)
    for who, outputs in (("student", student), ("teacher", teacher)):
      contract.check_output("catkd", "final_map", who, outputs)
      contract.check_output("catkd", "head", who, outputs)
    contract.check_same_classes("catkd", student, teacher)

  def loss_fn(student, teachers, context):
    del context
    # Averaged before the classifier: it is linear, so the maps are the same, and there are fewer positions.
    student, teacher = (
      class_activation_maps(maps.adaptive_avg_pool(outputs.final_map, (size, size)), outputs.head)
      for outputs in (student, *teachers)
    )
    return loss(student, teacher, size=size, normalize=normalize)

  return contract.stateless(loss_fn, check, reads=("final_map", "head"))
