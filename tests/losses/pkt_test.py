"""Tests of losses/pkt.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import pkt

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(pkt.loss)
value_and_gradient = jax.jit(jax.value_and_grad(lambda s, t, **options: pkt.loss(s, t, **options).sum()))


def embeddings(seed, b=6, d=4):
  return np.random.default_rng(seed).normal(size=(b, d))


def test_worked_by_hand():
  # Kernels (1, 1/2) of orthogonal and (1, 1) of equal embeddings: probabilities (2/3, 1/3) and (1/2, 1/2).
  student, teacher = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[0.0, 3.0], [1.0, 0.0]])
  expected = (2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)) / 2
  np.testing.assert_allclose(loss(student, teacher), [expected, expected], rtol=1e-6)


def test_ignores_the_length_and_rotations_of_embeddings():
  student, teacher = embeddings(0), embeddings(1)
  lengths, rotation = 1 + np.arange(6.0)[:, None], np.linalg.qr(embeddings(2, 4, 4))[0]
  np.testing.assert_allclose(loss(lengths * student @ rotation, teacher), loss(student, teacher), rtol=1e-5)
  np.testing.assert_allclose(loss(lengths * teacher @ rotation, teacher), 0, atol=1e-6)


def test_the_teachers_distribution_weighs():
  student, teacher = embeddings(0), embeddings(1)
  assert loss(student, teacher).mean() > 0
  assert abs(loss(student, teacher).mean() - loss(teacher, student).mean()) > 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_opposite_embeddings_in_float32(seed):
  # Rounding makes cosines fall below -1 and so kernels below zero: with a small eps their logarithm is not a number.
  x = embeddings(seed, 16, 64).astype(np.float32)
  student, teacher = np.concatenate([x, -x]), embeddings(seed + 10, 32, 64).astype(np.float32)
  for s, t in ((student, teacher), (teacher, student), (student, student)):
    value, gradient = value_and_gradient(s, t, eps=1e-12)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_zero_embeddings_are_equally_similar_to_all():
  value, gradient = value_and_gradient(np.zeros((4, 3)), embeddings(0, 4, 3))
  teacher = embeddings(0, 4, 3)
  unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
  p = (1 + unit @ unit.T) / (1 + unit @ unit.T).sum(1, keepdims=True)
  np.testing.assert_allclose(value, (p * np.log(4 * p)).mean(1).sum(), rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_a_batch_of_one_has_no_neighbours():
  value, gradient = value_and_gradient(embeddings(0, 1), embeddings(1, 1))
  assert value == 0
  np.testing.assert_allclose(gradient, 0, atol=1e-12)
