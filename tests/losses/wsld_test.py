"""Tests of losses/wsld.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import wsld

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(wsld.loss)


def networks(seed, b=4, k=5):
  rng = np.random.default_rng(seed)
  return (*rng.normal(size=(2, b, k)), rng.integers(0, k, b))


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def test_worked_by_hand():
  # CE of the student log 4, of the teacher log 2: their quotient is 2. H of anything with a uniform student is log 4.
  teacher = np.log([[3.0, 1.0, 1.0, 1.0]])
  rows = loss(np.zeros((1, 4)), teacher, np.array([0]), temperature=1.0)
  np.testing.assert_allclose(rows, [(1 - np.exp(-2)) * np.log(4)], rtol=1e-6)


@pytest.mark.parametrize("seed, b, k, temperature", [(0, 4, 5, 1.0), (1, 3, 7, 4.0), (2, 2, 3, 2.0)])
def test_equals_the_formula(seed, b, k, temperature):
  student, teacher, labels = networks(seed, b, k)

  def cross_entropy(z):
    return -np.log(softmax(z)[np.arange(b), labels])

  weight = 1 - np.exp(-cross_entropy(student) / (cross_entropy(teacher) + 1e-7))
  soft = -np.sum(softmax(teacher / temperature) * np.log(softmax(student / temperature)), axis=1)
  rows = loss(student, teacher, labels, temperature=temperature)
  np.testing.assert_allclose(rows, temperature**2 * weight * soft, rtol=1e-10)


def test_gradient_takes_the_weights_as_given():
  student, teacher, labels = networks(3)
  weight = np.asarray(wsld.weight(student, teacher, labels))
  expected = 4.0 * weight[:, None] * (softmax(student / 4) - softmax(teacher / 4))
  gradient = jax.grad(lambda s: loss(s, teacher, labels, temperature=4.0).sum())(student)
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_the_better_student_learns_less():
  teacher = np.zeros((3, 4))
  student = np.array([[9.0, 0, 0, 0], [0, 0, 0, 0], [-9.0, 0, 0, 0]])
  better, equal, worse = wsld.weight(student, teacher, np.zeros(3, int))
  np.testing.assert_allclose(equal, 1 - np.exp(-1), rtol=1e-6)
  assert better < 0.001 and worse > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_teachers_that_are_certain_and_right(dtype):
  # The teacher's cross-entropy is exactly 0; the first student's too.
  teacher = np.array([[1e4, 0.0], [1e4, 0.0]], dtype)
  student = np.array([[1e4, 0.0], [0.0, 0.0]], dtype)
  labels = np.zeros(2, int)
  np.testing.assert_array_equal(wsld.weight(student, teacher, labels), [0.0, 1.0])
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, labels).sum())(student)
  np.testing.assert_allclose(value, 16 * np.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[0, 0], [-2, 2]], atol=1e-6)
