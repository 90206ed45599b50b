"""Tests of losses/hard_label.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import hard_label

pytestmark = pytest.mark.usefixtures("float64")


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def test_worked_by_hand():
  student, teacher = np.log([[1.0, 3.0], [1.0, 3.0]]), np.array([[0.1, 0.2], [5.0, -5.0]])
  np.testing.assert_allclose(hard_label.loss(student, teacher), [np.log(4 / 3), np.log(4)])


@pytest.mark.parametrize("seed, b, k", [(0, 4, 5), (1, 1, 2), (2, 3, 100)])
def test_equals_the_formula(seed, b, k):
  student, teacher = np.random.default_rng(seed).normal(size=(2, b, k))
  expected = -np.log(softmax(student)[np.arange(b), teacher.argmax(axis=1)])
  np.testing.assert_allclose(hard_label.loss(student, teacher), expected)


def test_only_the_decision_counts():
  student, teacher = np.random.default_rng(3).normal(size=(2, 4, 5))
  rows = hard_label.loss(student, teacher)
  np.testing.assert_array_equal(hard_label.loss(student, 100 * teacher + 7), rows)
  assert (hard_label.loss(student, -teacher) != rows).all()


def test_the_first_of_equals_decides():
  student = np.log([[1.0, 2.0, 3.0]])
  np.testing.assert_allclose(hard_label.loss(student, np.array([[0.0, 1.0, 1.0]])), [np.log(3)])


def test_gradient_is_the_difference_from_the_decision():
  student, teacher = np.random.default_rng(4).normal(size=(2, 4, 5))
  by_student, by_teacher = jax.grad(lambda s, t: hard_label.loss(s, t).sum(), (0, 1))(student, teacher)
  np.testing.assert_allclose(by_student, softmax(student) - np.eye(5)[teacher.argmax(axis=1)], atol=1e-12)
  assert (by_teacher == 0).all()
