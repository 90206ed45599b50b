"""Tests of losses/ttm.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import kd, ttm

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(ttm.loss)


def networks(seed, b=4, k=5):
  return np.random.default_rng(seed).normal(size=(2, b, k))


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def test_worked_by_hand():
  # The square roots of (9/10, 1/10) are as 3 to 1; the student is uniform.
  rows = loss(np.zeros((1, 2)), np.log([[9.0, 1.0]]), gamma=0.5)
  np.testing.assert_allclose(rows, [0.75 * np.log(1.5) + 0.25 * np.log(0.5)])


@pytest.mark.parametrize("seed, b, k, gamma", [(0, 4, 5, 0.1), (1, 3, 7, 0.5), (2, 2, 3, 1.5)])
def test_equals_the_formula(seed, b, k, gamma):
  student, teacher = networks(seed, b, k)
  p, q = softmax(student), softmax(teacher) ** gamma
  q /= q.sum(axis=1, keepdims=True)
  expected = np.sum(q * np.log(q / p), axis=1)
  np.testing.assert_allclose(loss(student, teacher, gamma=gamma), expected, rtol=1e-10)


def test_the_power_is_a_temperature_of_the_teacher_alone():
  student, teacher = networks(3)
  softened = kd.loss(student / 0.25, teacher, temperature=4.0) / 16
  np.testing.assert_allclose(loss(student, teacher, gamma=0.25), softened, rtol=1e-10)
  np.testing.assert_allclose(loss(0.25 * teacher + 3.0, teacher, gamma=0.25), 0, atol=1e-12)


def test_gradient_is_the_difference_of_probabilities():
  student, teacher = networks(4)
  gradient = jax.grad(lambda s: loss(s, teacher, gamma=0.5).sum())(student)
  np.testing.assert_allclose(gradient, softmax(student) - softmax(0.5 * teacher), atol=1e-12)
