"""Tests of losses/sp.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import sp
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(sp.loss)


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def test_worked_by_hand():
  # Maps of one number: inner products (1, 1; 1, 1) against (1, 0; 0, 1), of rows (1, 1) / sqrt 2 and unit rows.
  student, teacher = np.ones((2, 1, 1, 1)), np.eye(2).reshape(2, 1, 1, 2)
  half = np.sqrt(0.5)
  expected = ((half - 1) ** 2 + half**2) / 2
  np.testing.assert_allclose(loss((student,), (teacher,)), [expected, expected])


@pytest.mark.parametrize("seed, student, teacher", [(0, (4, 4, 3), (2, 2, 5)), (1, (1, 1, 1), (3, 2, 2))])
def test_equals_numpy_over_two_taps(seed, student, teacher):
  students, teachers = maps(seed, 2, 5, *student), maps(seed + 10, 2, 5, *teacher)

  def similarity(x):
    gram = x.reshape(5, -1) @ x.reshape(5, -1).T
    return gram / np.sqrt((gram**2).sum(1, keepdims=True))

  squares = [(similarity(s) - similarity(t)) ** 2 for s, t in zip(students, teachers, strict=True)]
  rows = loss(tuple(students), tuple(teachers))
  np.testing.assert_allclose(rows.mean(), sum(squares).sum() / 5**2, rtol=1e-10)
  np.testing.assert_allclose(rows, sum(squares).sum(1) / 5, rtol=1e-10)


def test_ignores_the_scale_and_rotations_of_the_channels():
  student, teacher = maps(0, 6, 2, 2, 4), maps(1, 6, 2, 2, 4)
  rotation = np.linalg.qr(maps(2, 4, 4))[0]
  expected = loss((student,), (teacher,))
  np.testing.assert_allclose(loss((1e3 * student @ rotation,), (teacher,)), expected, rtol=1e-9)
  np.testing.assert_allclose(loss((1e3 * teacher @ rotation,), (teacher,)), 0, atol=1e-12)


def outputs(*channels):
  features = tuple(jax.ShapeDtypeStruct((2, 4, 4, c), float) for c in channels)
  return Outputs(None, None, features, features)


def test_takes_the_last_maps_by_default_and_all_stages_for_empty_taps():
  student_outputs = Outputs(None, None, tuple(maps(i, 3, 2, 2, 4) for i in range(3)), ())
  teacher = Outputs(None, None, tuple(maps(i, 3, 2, 2, 5) for i in range(10, 14)), ())

  def run(**layers):
    return sp.method(**layers).apply((), (), student_outputs, (teacher,), Context(None))[0]

  np.testing.assert_allclose(run(), sp.loss(student_outputs.features[-1:], teacher.features[-1:]))
  stages = run(student_layers=(), teacher_layers=())
  np.testing.assert_allclose(stages, sp.loss(student_outputs.features[1:3], teacher.features[1:3]))
