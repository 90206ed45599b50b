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
  [
    ("reference_tcp", [0.1, 0.5, 1.0]),
    ("one_minus_reference_tcp", [0.9, 0.5, 0.0]),
    ("teacher_tcp", [0.8, 0.6, 0.4]),
    ("one_minus_teacher_tcp", [0.2, 0.4, 0.6]),
    ("constant", [1.0, 1.0, 1.0]),
  ],
)
def test_weights(name, expected):
  inputs = of_tcp([0.1, 0.5, 1.0], teacher_tcp=[0.8, 0.6, 0.4])
  np.testing.assert_allclose(reference.sample_weights(inputs, weighting=name), expected, rtol=1e-6)
  normalized = reference.sample_weights(inputs, weighting=name, normalize=True)
  np.testing.assert_allclose(normalized, np.divide(expected, np.mean(expected)), rtol=1e-6)


def of_tcp(reference_tcp, axis_name=None, teacher_tcp=np.nan):
  """Inputs of which only true-class probabilities are defined."""
  of_reference = jnp.asarray(reference_tcp, jnp.float32)
  of_teacher = jnp.broadcast_to(jnp.asarray(teacher_tcp, jnp.float32), of_reference.shape)
  undefined = jnp.full((*of_reference.shape, 2), jnp.nan)
  return weighting.WeightingInputs(
    of_teacher, of_reference, undefined, undefined, jax.random.key(0), axis_name
  )


def test_the_default_weight_is_the_true_class_probability_of_the_reference():
  assert reference.Reference().weighting == "reference_tcp"
  np.testing.assert_array_equal(reference.sample_weights(of_tcp([0.25, 0.75])), [0.25, 0.75])


def test_weights_of_zero_stay_zero_when_normalized():
  weights = reference.sample_weights(of_tcp(jnp.zeros(3)), normalize=True)
  np.testing.assert_array_equal(weights, 0)


def test_weights_are_normalized_over_all_devices():
  tcp = jnp.array([[0.1, 0.3], [0.7, 0.9]])
  each = jax.pmap(lambda t: reference.sample_weights(of_tcp(t, "d"), normalize=True), axis_name="d")(tcp)
  whole = reference.sample_weights(of_tcp(tcp.ravel()), normalize=True)
  np.testing.assert_allclose(each.ravel(), whole, rtol=1e-6)


def test_the_published_loss_by_hand_and_its_gradient(float64):
  """Eq. 8: KL(student || reference) without a factor. Its gradient by finite differences."""
  weights = np.linspace(0, 1, 6)
  q, p = softmax(OTHER), softmax(LOGITS)
  loss = lambda student: reference.weighted_divergence(student, jnp.asarray(OTHER), jnp.asarray(weights))
  np.testing.assert_allclose(loss(jnp.asarray(LOGITS)), weights * (p * np.log(p / q)).sum(-1), rtol=1e-9)
  gradient = jax.grad(lambda student: loss(student).sum())(jnp.asarray(LOGITS))
  by_hand = weights[:, None] * p * (np.log(p / q) - (p * np.log(p / q)).sum(-1, keepdims=True))
  np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", reference.DIVERGENCES)
@pytest.mark.parametrize("scaled", [False, True])
def test_temperature_and_factor_of_both_divergences(divergence, scaled, float64):
  p, q = softmax(LOGITS / 3), softmax(OTHER / 3)
  first, second = (p, q) if divergence == "student_to_reference" else (q, p)
  values = reference.weighted_divergence(
    jnp.asarray(LOGITS),
    jnp.asarray(OTHER),
    jnp.ones(6),
    divergence=divergence,
    temperature=3.0,
    scale_by_temperature_squared=scaled,
  )
  np.testing.assert_allclose(
    values, (9 if scaled else 1) * (first * np.log(first / second)).sum(-1), rtol=1e-9
  )


def test_an_unknown_divergence_is_refused():
  with pytest.raises(ValueError, match="divergence: 'both' is not one of student_to_reference"):
    reference.weighted_divergence(jnp.asarray(LOGITS), jnp.asarray(OTHER), jnp.ones(6), divergence="both")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"scale_by_temperature_squared": True}, "scale_by_temperature_squared: True, but temperature is 1"),
    ({"weighting": "constant", "tcp_temperature": 4.0}, "tcp_temperature: 4.0, but weighting 'constant'"),
    ({"weighting": "constant", "normalize": True}, "normalize: True, but weighting 'constant'"),
    ({"weighting": "learned_teacher_tcp", "normalize": True}, "normalize: True, but weighting 'learned"),
  ],
)
def test_contradictions(options, message):
  assert reference.conflicting_option(reference.Reference(**options)).startswith(message)
  assert reference.conflicting_option(reference.Reference()) is None


def test_the_divergence_from_the_reference_by_hand_and_its_gradient():
  weights = np.linspace(0, 1, 6)
  loss = lambda student: reference.weighted_divergence(
    student,
    jnp.asarray(OTHER),
    jnp.asarray(weights),
    divergence="reference_to_student",
    temperature=2.0,
    scale_by_temperature_squared=True,
  )
  p, q = softmax(OTHER / 2), softmax(LOGITS / 2)
  expected = weights * 4 * (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(loss(jnp.asarray(LOGITS)), expected, rtol=1e-4, atol=1e-6)
  gradient = jax.grad(lambda student: loss(student).sum())(jnp.asarray(LOGITS))
  np.testing.assert_allclose(gradient, weights[:, None] * 2 * (q - p), rtol=1e-3, atol=1e-6)


def test_a_snapshot_outlives_what_it_was_taken_from():
  variables = {"w": jnp.arange(3.0)}
  copy = reference.copy_variables(variables)
  variables["w"].delete()
  np.testing.assert_array_equal(copy["w"], [0, 1, 2])
