"""Tests of losses/kd.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import kd
from smskd_jax.types import Outputs

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


def test_half_precision_is_computed_in_single():
  student, teacher = np.random.default_rng(2).normal(size=(2, 3, 4)).astype(jnp.bfloat16)
  loss = kd.loss(student, teacher)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, kd.loss(student.astype(float), teacher.astype(float)), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "4", True])
def test_refuses_temperatures(temperature):
  with pytest.raises(ValueError, match="kd: temperature must be a positive number, got "):
    kd.method(temperature=temperature)


def test_refuses_networks_of_different_tasks():
  student, teacher = (Outputs(jax.ShapeDtypeStruct((4, k), float), None, (), ()) for k in (10, 100))
  with pytest.raises(ValueError, match="kd: the student has 10 classes, the teacher 100"):
    kd.method().init(jax.random.key(0), student, (teacher,), None)


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (5,)])
def test_refuses_logits_of_different_shapes(shape):
  with pytest.raises(AssertionError):
    kd.loss(np.zeros((4, 5)), np.zeros(shape))
