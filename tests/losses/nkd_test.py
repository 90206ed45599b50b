"""Tests of losses/nkd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import nkd

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(nkd.loss)


def networks(seed, b=4, k=5):
  rng = np.random.default_rng(seed)
  return (*rng.normal(size=(2, b, k)), rng.integers(0, k, b))


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def test_worked_by_hand():
  # Teacher (1/2, 1/3, 1/6) and a uniform student, label 0: 1/2 log 3, and (2/3, 1/3) against (1/2, 1/2).
  teacher = np.log([[3.0, 2.0, 1.0]])
  rows = loss(np.zeros((1, 3)), teacher, np.array([0]), gamma=1.5, temperature=1.0)
  np.testing.assert_allclose(rows, [0.5 * np.log(3) + 1.5 * np.log(2)])


@pytest.mark.parametrize(
  "seed, b, k, gamma, temperature", [(0, 4, 5, 1.5, 1.0), (1, 3, 7, 3.5, 3.0), (2, 2, 3, 0.5, 4.0)]
)
def test_equals_the_formula(seed, b, k, gamma, temperature):
  student, teacher, labels = networks(seed, b, k)
  expected = []
  for z_s, z_t, y in zip(student, teacher, labels, strict=True):
    q_s, q_t = (softmax(np.delete(z, y) / temperature) for z in (z_s, z_t))
    on_label = softmax(z_t)[y] * np.log(softmax(z_s)[y])
    expected.append(-on_label - gamma * temperature**2 * np.sum(q_t * np.log(q_s)))
  rows = loss(student, teacher, labels, gamma=gamma, temperature=temperature)
  np.testing.assert_allclose(rows, expected, rtol=1e-10)


def test_gradient_of_the_others_vanishes_where_they_agree_up_to_a_constant():
  student, _, labels = networks(3)
  teacher = student + 2.0 * np.eye(5)[labels] + 1.0
  by_gamma = [
    jax.grad(lambda s, gamma=gamma: loss(s, teacher, labels, gamma=gamma).sum())(student)
    for gamma in (0.0, 3.5)
  ]
  np.testing.assert_allclose(*by_gamma, atol=1e-12)


def test_of_two_classes_only_the_label_counts():
  student, teacher, labels = networks(4, k=2)
  rows = loss(student, teacher, labels)
  np.testing.assert_array_equal(rows, loss(student, teacher, labels, gamma=0.0))


def test_right_at_extreme_logits():
  student, teacher = np.array([[-1e4, 1e4, 0.0]]), np.array([[1e4, -1e4, 0.0]])

  def total(s):
    return loss(s, teacher, np.array([0]), gamma=2.0, temperature=1.0).sum()

  value, gradient = jax.value_and_grad(total)(student)
  np.testing.assert_allclose(value, 2e4 + 2 * 1e4)  # among the others the teacher is certain of class 2
  np.testing.assert_allclose(gradient, [[-1.0, 1.0 + 2.0, -2.0]], atol=1e-12)
