"""Tests of losses/logits_cosine.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import logits_cosine

pytestmark = pytest.mark.usefixtures("float64")


def test_worked_by_hand():
  # Parallel, at right angles, opposite, and 3-4-5: 24 / (5 * 5).
  student = np.array([[2.0, 1.0], [1.0, 0.0], [1.0, -2.0], [3.0, 4.0]])
  teacher = np.array([[4.0, 2.0], [0.0, 7.0], [-3.0, 6.0], [4.0, 3.0]])
  np.testing.assert_allclose(logits_cosine.loss(student, teacher), [0, 1, 2, 1 / 25], atol=1e-15)


@pytest.mark.parametrize("seed, b, k", [(0, 4, 5), (1, 1, 2), (2, 3, 100)])
def test_in_numpy(seed, b, k):
  student, teacher = np.random.default_rng(seed).normal(size=(2, b, k))
  cosine = (student * teacher).sum(1) / np.sqrt((student**2).sum(1) * (teacher**2).sum(1))
  np.testing.assert_allclose(logits_cosine.loss(student, teacher), 1 - cosine, rtol=1e-12)


def test_the_length_does_not_count_and_a_constant_does():
  student, teacher = np.random.default_rng(3).normal(size=(2, 4, 5))
  rows = logits_cosine.loss(student, teacher)
  np.testing.assert_allclose(logits_cosine.loss(1e3 * student, 1e-3 * teacher), rows, rtol=1e-12)
  assert np.all(np.abs(logits_cosine.loss(student + 1.0, teacher) - rows) > 1e-3)


def test_gradient():
  student, teacher = np.random.default_rng(4).normal(size=(2, 3, 5))
  check_grads(lambda s: logits_cosine.loss(s, teacher), (student,), order=1, modes=["rev"])
  # It turns the student's logits and does not stretch them.
  gradient = jax.grad(lambda s: logits_cosine.loss(s, teacher).sum())(student)
  np.testing.assert_allclose((gradient * student).sum(1), 0, atol=1e-12)


@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_logits_of_zero_have_a_loss_of_one_and_no_gradient(who):
  student, teacher = np.random.default_rng(5).normal(size=(2, 2, 5))
  student[0] *= who == "teacher"
  teacher[0] *= who == "student"
  rows, pull_back = jax.vjp(logits_cosine.loss, student, teacher)
  assert rows[0] == 1
  gradients = pull_back(jnp.ones(2))
  assert np.isfinite(gradients).all()
  assert not np.any(gradients[0][0]) and np.all(gradients[0][1])


def test_half_precision_is_computed_in_single():
  # In bfloat16 the squares 1 and 2^-8 add up to 1.
  student, teacher = jnp.array([[1.0, 2.0**-4]], jnp.bfloat16), jnp.array([[1.0, 0.0]], jnp.bfloat16)
  rows = logits_cosine.loss(student, teacher)
  assert rows.dtype == jnp.float32
  np.testing.assert_allclose(rows, [1 - 1 / np.sqrt(1 + 2.0**-8)], rtol=1e-4)
