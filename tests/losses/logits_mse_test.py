"""Tests of losses/logits_mse.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import logits_mse

pytestmark = pytest.mark.usefixtures("float64")


def test_worked_by_hand():
  student, teacher = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 5.0], [0.0, 0.0]])
  np.testing.assert_allclose(logits_mse.loss(student, teacher), [(1 + 9) / 2, 0])


@pytest.mark.parametrize("seed, b, k", [(0, 4, 5), (1, 1, 2), (2, 3, 100)])
def test_the_mean_over_the_batch_is_the_mean_over_all(seed, b, k):
  student, teacher = np.random.default_rng(seed).normal(size=(2, b, k))
  rows = logits_mse.loss(student, teacher)
  np.testing.assert_allclose(rows, [np.mean((s - t) ** 2) for s, t in zip(student, teacher, strict=True)])
  np.testing.assert_allclose(rows.mean(), np.mean((student - teacher) ** 2))


def test_a_constant_counts():
  logits = np.random.default_rng(3).normal(size=(4, 5))
  np.testing.assert_allclose(logits_mse.loss(logits + 3.0, logits), 9.0)


def test_gradient():
  student, teacher = np.random.default_rng(4).normal(size=(2, 3, 5))
  gradient = jax.grad(lambda s: logits_mse.loss(s, teacher).sum())(student)
  np.testing.assert_allclose(gradient, 2 / 5 * (student - teacher))


def test_half_precision_is_computed_in_single():
  # bfloat16 has no number between 2^16 and 2^16 + 512: the smaller square would be lost.
  student, teacher = jnp.array([[256.0, 1.0]], jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
  rows = logits_mse.loss(student, teacher)
  assert rows.dtype == jnp.float32
  np.testing.assert_array_equal(rows, [(2.0**16 + 1) / 2])
