"""Tests of losses/dist.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import dist

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(dist.loss, static_argnames="axis_name")
value_and_gradient = jax.jit(jax.value_and_grad(lambda s, t: dist.loss(s, t).mean()))


def logits(seed, b=6, k=5):
  return np.random.default_rng(seed).normal(size=(b, k))


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("seed, b, k, temperature", [(0, 6, 5, 1.0), (1, 3, 9, 4.0), (2, 8, 2, 2.0)])
def test_equals_pearson_correlations(seed, b, k, temperature):
  student, teacher = logits(seed, b, k), logits(seed + 10, b, k)
  p, q = softmax(student / temperature), softmax(teacher / temperature)
  inter = np.array([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(b)])
  intra = np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(k)])
  rows = loss(student, teacher, gamma=0.0, temperature=temperature)
  np.testing.assert_allclose(rows, temperature**2 * inter, atol=1e-3)  # but for eps
  rows = loss(student, teacher, beta=0.0, temperature=temperature)
  np.testing.assert_allclose(rows.mean(), temperature**2 * intra, rtol=1e-4)
  rows = loss(student, teacher, beta=3.0, gamma=2.0, temperature=temperature)
  np.testing.assert_allclose(rows.mean(), temperature**2 * (3 * inter.mean() + 2 * intra), rtol=1e-4)


def test_shares_worked_by_hand():
  # Two classes, p_0 = 1/4, 1/2, 3/4 and q_0 = 1/4, 3/4, 1/2: as unit vectors (-1, 0, 1) and (-1, 1, 0) by sqrt(2).
  student, teacher = (np.log([[x, 1 - x] for x in p]) for p in ([0.25, 0.5, 0.75], [0.25, 0.75, 0.5]))
  rows = loss(student, teacher, beta=0.0, temperature=1.0)
  np.testing.assert_allclose(rows, [0, 3 / 4, 3 / 4], rtol=1e-6, atol=1e-6)  # correlated by 1/2


def test_zero_where_probabilities_are_related_linearly():
  # Of two rows over two classes, one network twice as far from uniform as the other.
  p = np.array([[0.6, 0.4], [0.3, 0.7]])
  student, teacher = np.log(p), np.log(0.5 + 0.5 * (p - 0.5))
  np.testing.assert_allclose(loss(student, teacher, temperature=1.0), 0, atol=1e-5)
  np.testing.assert_allclose(loss(logits(0), logits(0) + 3.0), 0, atol=1e-3)  # eps
  assert (loss(logits(0), logits(1)) > 0).all()


def test_constant_probabilities_have_no_gradient():
  uniform = np.zeros((6, 5))
  value, gradient = value_and_gradient(uniform, logits(1))
  np.testing.assert_allclose(value, 16 * 2)
  assert (gradient == 0).all()


def test_a_batch_of_one_has_no_relations_between_examples():
  value_and_gradient_of_batch = jax.jit(jax.value_and_grad(lambda s, t: dist.loss(s, t, beta=0.0).mean()))
  value, gradient = value_and_gradient_of_batch(logits(0, 1), logits(1, 1))
  assert value == 16 and (gradient == 0).all()
