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


def of_distances(*distances):
  """Maps whose largest response exceeds zero by these, an example each."""
  return np.stack([np.array([x, -7.0]).reshape(1, 2, 1) for x in distances])


def test_worked_by_hand():
  # Largest distance 4 at the first tap, of the second example; 5 at the second, of the first one.
  students = of_distances(1.0, 4.0), of_distances(5.0, 2.0)
  teachers = [np.zeros_like(x) for x in students]
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.0), [2 * 5, 2 * 4])
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.0, reduction="mean"), [1 + 5, 4 + 2])
  np.testing.assert_allclose(sfd.loss(students, teachers, eps=0.5).mean(), 4.5 + 5.5)


def test_the_norm_runs_over_channels_and_sizes_may_differ():
  student = np.concatenate([of_distances(3.0), of_distances(4.0)], axis=3)
  np.testing.assert_allclose(sfd.loss([student], [np.zeros((1, 3, 5, 2))], eps=0.0), [5])


def test_only_the_worst_example_and_its_largest_response_learn():
  student = of_distances(1.0, -4.0, 2.0)
  gradient = jax.jit(jax.grad(lambda x: sfd.loss([x], [np.zeros_like(student)]).mean()))(student)
  expected = np.zeros_like(student)
  expected[1, 0, 0, 0] = -1
  np.testing.assert_allclose(gradient, expected)


def test_the_first_of_equal_distances_counts_once():
  student = of_distances(2.0, 2.0, 1.0)
  np.testing.assert_allclose(sfd.loss([student], [np.zeros_like(student)], eps=0.0), [6, 0, 0])


def test_equal_maps_have_a_finite_gradient_without_eps():
  student = maps(0, 3, 2, 2, 4)
  value, gradient = jax.value_and_grad(lambda x: sfd.loss([x], [student], eps=0.0).mean())(student)
  assert value == 0 and (gradient == 0).all()


def test_method_has_the_stem_and_projects_where_channels_differ():
  learner = outputs(maps(0, 3, 4, 4, 2), maps(1, 3, 2, 2, 4))
  teacher = outputs(maps(2, 3, 4, 4, 2), maps(3, 3, 4, 4, 5))
  method = sfd.method(reduction="mean")
  aux = method.init(jax.random.key(0), learner, (teacher,), None)
  assert list(aux.params) == ["tap1"]
  run = jax.jit(lambda params: method.apply(params, aux.state, learner, (teacher,), Context(None))[0])
  of_taps = (learner.features[0], learner.features[1] @ aux.params["tap1"]["kernel"][0, 0])
  largest = lambda x: np.asarray(x).max((1, 2))
  expected = [
    np.linalg.norm(largest(s) - largest(t) + 1e-6, axis=1)
    for s, t in zip(of_taps, teacher.features, strict=True)
  ]
  np.testing.assert_allclose(run(aux.params), expected[0] + expected[1])
  assert (jax.grad(lambda p: run(p).mean())(aux.params)["tap1"]["kernel"] != 0).any()


@pytest.mark.parametrize(
  "hparams, message",
  [
    ({"reduction": "sum"}, "sfd: reduction must be one of max, mean, got 'sum'"),
    ({"eps": -1e-6}, "sfd: eps must be a number >= 0, got -1e-06"),
    ({"student_layers": (0, 1)}, "sfd: student_layers and teacher_layers must be as many"),
  ],
)
def test_refuses(hparams, message):
  with pytest.raises(ValueError, match=message):
    sfd.method(**hparams)


@pytest.mark.parametrize("teacher", [(2, 3, 3, 4), (1, 3, 3, 2), (2, 2)])
def test_loss_refuses_maps_of_other_examples_or_channels(teacher):
  with pytest.raises(AssertionError):
    sfd.loss([np.zeros((2, 3, 3, 2))], [np.zeros(teacher)])
