"""Tests of training/reference.py: what SMSKD adds to KD, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import reference

RNG = np.random.default_rng(0)
LOGITS, OTHER = 2 * RNG.normal(size=(2, 6, 4))
LABEL = RNG.integers(0, 4, 6)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_true_class_probability(temperature):
  tcp = reference.true_class_probability(jnp.asarray(LOGITS), jnp.asarray(LABEL), temperature=temperature)
  np.testing.assert_allclose(tcp, softmax(LOGITS / temperature)[np.arange(6), LABEL], rtol=1e-5)


@pytest.mark.parametrize(
  ("weighting", "expected"),
  [("one_minus_tcp", [0.9, 0.5, 0.0]), ("tcp", [0.1, 0.5, 1.0]), ("constant", [1.0, 1.0, 1.0])],
)
def test_weights(weighting, expected):
  tcp = jnp.array([0.1, 0.5, 1.0])
  np.testing.assert_allclose(reference.sample_weights(tcp, weighting=weighting), expected, rtol=1e-6)
  normalized = reference.sample_weights(tcp, weighting=weighting, normalize=True)
  np.testing.assert_allclose(normalized, np.divide(expected, np.mean(expected)), rtol=1e-6)


def test_default_weighting_frees_the_student_where_the_teacher_is_sure():
  assert reference.sample_weights(jnp.array([0.99]))[0] < reference.sample_weights(jnp.array([0.2]))[0]


def test_weights_of_a_sure_teacher_stay_zero_when_normalized():
  weights = reference.sample_weights(jnp.ones(3), normalize=True)
  np.testing.assert_array_equal(weights, 0)


def test_weights_are_normalized_over_all_devices():
  tcp = jnp.array([[0.1, 0.3], [0.7, 0.9]])
  each = jax.pmap(lambda t: reference.sample_weights(t, normalize=True, axis_name="d"), axis_name="d")(tcp)
  np.testing.assert_allclose(each.ravel(), reference.sample_weights(tcp.ravel(), normalize=True), rtol=1e-6)


def test_loss_by_hand_and_its_gradient():
  weights = np.linspace(0, 1, 6)
  loss = lambda student: reference.loss(student, jnp.asarray(OTHER), jnp.asarray(weights), temperature=2.0)
  p, q = softmax(OTHER / 2), softmax(LOGITS / 2)
  expected = weights * 4 * (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(loss(jnp.asarray(LOGITS)), expected, rtol=1e-4, atol=1e-6)
  gradient = jax.grad(lambda student: loss(student).sum())(jnp.asarray(LOGITS))
  np.testing.assert_allclose(gradient, weights[:, None] * 2 * (q - p), rtol=1e-3, atol=1e-6)


def test_a_snapshot_outlives_what_it_was_taken_from():
  variables = {"w": jnp.arange(3.0)}
  copy = reference.snapshot(variables)
  variables["w"].delete()
  np.testing.assert_array_equal(copy["w"], [0, 1, 2])
