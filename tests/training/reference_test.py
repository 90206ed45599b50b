"""Tests of training/reference.py: what SMSKD adds to KD, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import reference, weighting

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


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_of_a_mixed_image_it_is_the_mean_over_its_classes(temperature):
  target = RNG.dirichlet(np.ones(4), 6)
  tcp = reference.true_class_probability(
    jnp.asarray(LOGITS), jnp.asarray(LABEL), target=jnp.asarray(target), temperature=temperature
  )
  p = softmax(LOGITS / temperature)
  np.testing.assert_allclose(
    tcp, [sum(target[i, k] * p[i, k] for k in range(4)) for i in range(6)], rtol=1e-5
  )


def test_without_a_label_it_is_that_of_the_likeliest_class():
  label = np.where(np.arange(6) < 3, -1, LABEL)
  tcp = reference.true_class_probability(jnp.asarray(LOGITS), jnp.asarray(label))
  p = softmax(LOGITS)
  np.testing.assert_allclose(tcp, np.where(label < 0, p.max(-1), p[np.arange(6), LABEL]), rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "expected"),
  [("one_minus_tcp", [0.9, 0.5, 0.0]), ("tcp", [0.1, 0.5, 1.0]), ("constant", [1.0, 1.0, 1.0])],
)
def test_weights(name, expected):
  evidence = of_tcp([0.1, 0.5, 1.0])
  np.testing.assert_allclose(reference.sample_weights(evidence, weighting=name), expected, rtol=1e-6)
  normalized = reference.sample_weights(evidence, weighting=name, normalize=True)
  np.testing.assert_allclose(normalized, np.divide(expected, np.mean(expected)), rtol=1e-6)


def of_tcp(tcp, axis_name=None):
  """Evidence of which only TCP is known."""
  tcp = jnp.asarray(tcp, jnp.float32)
  unknown = jnp.full((*tcp.shape, 2), jnp.nan)
  return weighting.Evidence(tcp, jnp.full_like(tcp, jnp.nan), unknown, unknown, jax.random.key(0), axis_name)


def test_default_weighting_frees_the_student_where_the_teacher_is_sure():
  assert reference.sample_weights(of_tcp([0.99]))[0] < reference.sample_weights(of_tcp([0.2]))[0]


def test_weights_of_a_sure_teacher_stay_zero_when_normalized():
  weights = reference.sample_weights(of_tcp(jnp.ones(3)), normalize=True)
  np.testing.assert_array_equal(weights, 0)


def test_weights_are_normalized_over_all_devices():
  tcp = jnp.array([[0.1, 0.3], [0.7, 0.9]])
  each = jax.pmap(lambda t: reference.sample_weights(of_tcp(t, "d"), normalize=True), axis_name="d")(tcp)
  whole = reference.sample_weights(of_tcp(tcp.ravel()), normalize=True)
  np.testing.assert_allclose(each.ravel(), whole, rtol=1e-6)


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
