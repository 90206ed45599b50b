"""Tests of losses/kd.py."""

import jax
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import kd

pytestmark = pytest.mark.usefixtures("float64")


def test_worked_by_hand():
  # Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2. At T = 2 its logits double.
  expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  teacher = np.log([[3.0, 1.0]])
  np.testing.assert_allclose(kd.loss(np.zeros((1, 2)), teacher, temperature=1.0), [expected])
  np.testing.assert_allclose(kd.loss(np.zeros((1, 2)), 2 * teacher, temperature=2.0), [4 * expected])


def test_zero_where_logits_agree_up_to_a_constant():
  logits = np.random.default_rng(0).normal(size=(4, 5))
  np.testing.assert_allclose(kd.loss(logits + 7.0, logits), 0.0, atol=1e-12)


def test_gradient_is_the_difference_of_probabilities():
  # Equation 2 of the paper, times T^2.
  student, teacher = np.random.default_rng(1).normal(size=(2, 3, 4))
  gradient = jax.grad(lambda s: kd.loss(s, teacher, temperature=4.0).sum())(student)
  np.testing.assert_allclose(gradient, 4.0 * (jax.nn.softmax(student / 4.0) - jax.nn.softmax(teacher / 4.0)))
  check_grads(lambda s: kd.loss(s, teacher), (student,), order=1)


def test_finite_and_right_at_extreme_logits():
  logits = np.array([[1e4, -1e4, 0.0]])
  value, gradient = jax.value_and_grad(lambda s: kd.loss(s, -logits).sum())(logits)
  np.testing.assert_allclose(value, 16 * 5000.0)
  np.testing.assert_allclose(gradient, [[4.0, -4.0, 0.0]])
