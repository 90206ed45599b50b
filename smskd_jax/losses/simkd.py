"""Reused teacher classifier (SimKD): the student learns the teacher's last map.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
https://arxiv.org/abs/2203.14001

  L_i = mean_{h,w,c} (P(f_student,i) - f_teacher,i)^2

f is the map whose mean the classifier reads, P a projector of three convolutions (`layers/projector.py`). It is the
only loss: with the stage's `task_weight` = 0 there is no cross-entropy, as in the paper. The published numbers are of
the network that predicts by the teacher's classifier applied to the mean of P(f_student). That is the model `simkd` of
`models/simkd.py`: make it the student, and this method copies the teacher's classifier into it.

Any other student may be trained too. The projector is then an auxiliary part that ends with its stage, and the student
keeps a classifier of its own, which this loss does not train: leave the cross-entropy on, or train it in a later stage.

Differences: the mean over the map takes the place of the squared norm, as in the authors' code. Maps of different size
are averaged to the smaller one, also as there; but where the student's is the larger, that code averages it before the
projector, this module after it.
"""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers.projector import Projector
from smskd_jax.losses import adapters, contract, maps, numerics
from smskd_jax.types import FrozenHead, Head, MethodVariables, Outputs


def loss(student_feature: jax.Array, teacher_feature: jax.Array) -> jax.Array:
  """Mean squared error of the projected map, per example.

  Args:
    student_feature: [b, h, w, d], after the projector.
    teacher_feature: [b, h', w', d].

  Returns:
    [b].
  """
  chex.assert_rank([student_feature, teacher_feature], 4)
  chex.assert_equal_shape([student_feature, teacher_feature], dims=(0, 3))
  student, teacher = maps.match_spatial_size(
    numerics.upcast(student_feature), numerics.upcast(teacher_feature)
  )
  return jnp.mean(jnp.square(student - teacher), axis=(1, 2, 3))


def _teacher_head(teachers: tuple[Outputs, ...], index: Any) -> Head:
  """Teacher's classifier, checked against the shape of the student's kernel."""
  teacher = contract.single_teacher("simkd", teachers)
  contract.check_output("simkd", "head", "teacher", teacher)
  head = cast(Head, teacher.head)
  if head.kernel.shape != index.shape:
    raise ValueError(
      f"simkd: the student is made for a classifier of shape {list(index.shape)}, the teacher's has "
      f"{list(head.kernel.shape)}; give the student's options teacher and teacher_width, and its number of classes, "
      "the values of this stage's teacher"
    )
  return head


def init_student(variables: Any, teachers: tuple[Outputs, ...]) -> Any:
  """Copies the teacher's classifier into the student's collection `head`, if it has one.

  Raises:
    ValueError: the teacher's classifier is of another shape, or is not linear.
  """
  if "head" not in variables:
    return variables
  own = variables["head"]
  head = _teacher_head(teachers, own["kernel"])
  copies = {name: jnp.array(getattr(head, name), own[name].dtype) for name in ("kernel", "bias")}
  return {**variables, "head": copies}


def method(*, factor: float = 2.0) -> contract.Method:
  """SimKD from a single teacher.

  Args:
    factor: ratio of the channels outside to those inside the projector. The student `simkd` has a projector, and an
    option
      `factor`, of its own: there this one has no effect.
  """
  errors.check_positive("simkd", factor=factor)

  def projector(teacher):
    return Projector(teacher.final_map.shape[-1], factor)

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("simkd", teachers)
    contract.check_output("simkd", "final_map", "teacher", teacher)
    if isinstance(student.head, FrozenHead):
      _teacher_head(teachers, student.head.kernel)
      return MethodVariables()
    contract.check_output("simkd", "final_map", "student", student)
    return adapters.init(projector(teacher), key, student.final_map)

  def apply(params, state, student, teachers, context):
    (teacher,) = teachers
    if isinstance(student.head, FrozenHead):
      return loss(student.final_map, teacher.final_map), state
    projected, state = adapters.apply(
      projector(teacher), params, state, student.final_map, axis_name=context.axis_name
    )
    return loss(projected, teacher.final_map), state

  return contract.make(
    init,
    apply,
    reads=("final_map", "head"),
    student_reads=("final_map",),
    init_student=init_student,
    learns="a projector",
  )
