"""Tests of losses/pkd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import pkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*features):
  return Outputs(None, None, (None, *features), (None, *features))


STUDENT = outputs(maps(0, 3, 4, 4, 5), maps(1, 3, 2, 2, 4))
TEACHER = outputs(maps(2, 3, 2, 2, 5), maps(3, 3, 2, 2, 6))


def test_worked_by_hand():
  # Five differences of 1 and one of 3, of six numbers.
  student = np.ones((1, 2, 2, 1)), np.array([1.0, 3.0]).reshape(1, 1, 1, 2)
  rows = pkd.loss(student, [np.zeros_like(x) for x in student], beta=1.0)
  np.testing.assert_allclose(rows, [(5 + 9) / 6])
  np.testing.assert_allclose(pkd.loss(student, [np.zeros_like(x) for x in student]), 10 * rows)


def test_method_in_numpy_and_projections_only_where_channels_differ():
  method = pkd.method(beta=2.0)
  aux = method.init(jax.random.key(0), STUDENT, (TEACHER,), None)
  assert list(aux.params) == ["tap1"]
  loss, _ = jax.jit(method.apply)(*aux, STUDENT, (TEACHER,), Context(None))
  first = np.asarray(STUDENT.features[1]).reshape(3, 2, 2, 2, 2, 5).mean((2, 4)) - TEACHER.features[1]
  second = STUDENT.features[2] @ aux.params["tap1"]["kernel"][0, 0] - TEACHER.features[2]
  expected = 2 * ((first**2).sum((1, 2, 3)) + (second**2).sum((1, 2, 3))) / (4 * 5 + 4 * 6)
  np.testing.assert_allclose(loss, expected)


def test_the_mean_is_that_of_the_survey():
  """10 times one mean over images and numbers of all stages laid end to end, the stem's map left out."""
  shapes = (8, 8, 7), (8, 8, 2), (4, 4, 3), (2, 2, 5)
  student, teacher = ([maps(10 * who + i, 3, *shape) for i, shape in enumerate(shapes)] for who in range(2))
  laid_out = [np.concatenate([x.reshape(3, -1) for x in each[1:]], axis=1) for each in (student, teacher)]

  def of(features):
    return Outputs(None, None, tuple(features), (None,) * 4)

  method = pkd.method()
  aux = method.init(jax.random.key(0), of(student), (of(teacher),), None)
  assert not jax.tree.leaves(aux)
  rows, _ = method.apply(*aux, of(student), (of(teacher),), Context(None))
  np.testing.assert_allclose(rows.mean(), 10 * ((laid_out[0] - laid_out[1]) ** 2).mean())


def test_nothing_is_learned_between_maps_of_equal_channels():
  method = pkd.method(student_layers=(1,), teacher_layers=(-2,))
  aux = method.init(jax.random.key(0), STUDENT, (TEACHER,), None)
  assert not jax.tree.leaves(aux)
  assert method.apply(*aux, STUDENT, (STUDENT,), Context(None))[0].max() == 0


def test_the_projection_learns():
  method = pkd.method()
  aux = method.init(jax.random.key(0), STUDENT, (TEACHER,), None)

  def loss(params):
    return method.apply(params, aux.state, STUDENT, (TEACHER,), Context(None))[0].mean()

  assert (jax.jit(jax.grad(loss))(aux.params)["tap1"]["kernel"] != 0).all()
