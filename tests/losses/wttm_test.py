"""Tests of losses/wttm.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import wttm

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(wttm.loss)


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def test_worked_by_hand():
  # The square roots of (9/10, 1/10) add up to 4 / sqrt(10) and are as 3 to 1; the student is uniform.
  rows = loss(np.zeros((1, 2)), np.log([[9.0, 1.0]]), gamma=0.5)
  np.testing.assert_allclose(rows, [4 / np.sqrt(10) * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))])


@pytest.mark.parametrize("seed, b, k, gamma", [(0, 4, 5, 0.2), (1, 3, 7, 0.5), (2, 2, 3, 1.5)])
def test_equals_the_formula(seed, b, k, gamma):
  student, teacher = np.random.default_rng(seed).normal(size=(2, b, k))
  powers = softmax(teacher) ** gamma
  weight = powers.sum(axis=1)
  q = powers / weight[:, None]
  expected = weight * np.sum(q * np.log(q / softmax(student)), axis=1)
  np.testing.assert_allclose(loss(student, teacher, gamma=gamma), expected, rtol=1e-10)


def test_smooth_teachers_weigh_more():
  teacher = np.array([[1e4, 0.0, -1e4, 0.0], [1.0, 0.0, 0.0, 0.0], [7.0, 7.0, 7.0, 7.0]])
  certain, between, uniform = wttm.weight(teacher, gamma=0.5)
  np.testing.assert_allclose([certain, uniform], [1.0, 4**0.5])
  assert certain < between < uniform


def test_zero_and_without_gradient_at_the_transformed_teacher():
  teacher = np.random.default_rng(3).normal(size=(4, 5))
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher).sum())(0.2 * teacher - 1.0)
  np.testing.assert_allclose(value, 0, atol=1e-12)
  np.testing.assert_allclose(gradient, 0, atol=1e-12)
