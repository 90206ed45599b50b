"""Tests of losses/sfd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import sfd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*preactivations):
  return Outputs(None, None, preactivations, preactivations)


def map_at_distances(*distances):
  """Maps whose largest response exceeds zero by these, an example each."""
  return np.stack([np.array([x, -7.0]).reshape(1, 2, 1) for x in distances])


def test_worked_by_hand():
  # Largest distance 4 at the first layer, of the second example; 5 at the second, of the first one.
  students = map_at_distances(1.0, 4.0), map_at_distances(5.0, 2.0)
  teachers = [np.zeros_like(x) for x in students]
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.0), [2 * 5, 2 * 4])
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.0, reduction="mean"), [1 + 5, 4 + 2])
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.5).mean(), 4.5 + 5.5)


def test_the_norm_runs_over_channels_and_sizes_may_differ():
  student = np.concatenate([map_at_distances(3.0), map_at_distances(4.0)], axis=3)
  np.testing.assert_allclose(sfd.loss([student], [np.zeros((1, 3, 5, 2))], eps=0.0), [5])


def test_only_the_worst_example_and_its_largest_response_learn():
  student = map_at_distances(1.0, -4.0, 2.0)
  gradient = jax.jit(jax.grad(lambda x: sfd.loss([x], [np.zeros_like(student)]).mean()))(student)
  expected = np.zeros_like(student)
  expected[1, 0, 0, 0] = -1
  np.testing.assert_allclose(gradient, expected)


def test_the_first_of_equal_distances_counts_once():
  student = map_at_distances(2.0, 2.0, 1.0)
  np.testing.assert_allclose(sfd.loss([student], [np.zeros_like(student)], eps=0.0), [6, 0, 0])


def test_equal_maps_have_a_finite_gradient_without_eps():
  student = maps(0, 3, 2, 2, 4)
  value, gradient = jax.value_and_grad(lambda x: sfd.loss([x], [student], eps=0.0).mean())(student)
  assert value == 0 and (gradient == 0).all()


def test_method_has_the_stem_and_projects_where_channels_differ():
  student_outputs = outputs(maps(0, 3, 4, 4, 2), maps(1, 3, 2, 2, 4))
  teacher = outputs(maps(2, 3, 4, 4, 2), maps(3, 3, 4, 4, 5))
  method = sfd.method(reduction="mean")
  aux = method.init(jax.random.key(0), student_outputs, (teacher,), None)
  assert list(aux.params) == ["tap1"]
  run = jax.jit(lambda params: method.apply(params, aux.state, student_outputs, (teacher,), Context(None))[0])
  students = (student_outputs.features[0], student_outputs.features[1] @ aux.params["tap1"]["kernel"][0, 0])

  def largest(x):
    return np.asarray(x).max((1, 2))

  expected = [
    np.linalg.norm(largest(s) - largest(t) + 1e-6, axis=1)
    for s, t in zip(students, teacher.features, strict=True)
  ]
  np.testing.assert_allclose(run(aux.params), expected[0] + expected[1])
  assert (jax.grad(lambda p: run(p).mean())(aux.params)["tap1"]["kernel"] != 0).any()
