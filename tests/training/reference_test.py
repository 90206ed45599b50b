"""Tests of training/reference.py: weightings and the reference term of SMSKD, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.training import reference
from smskd_jax.training.targets import Targets
from smskd_jax.training.train_step import make_train_step

RNG = np.random.default_rng(0)
STUDENT, TEACHER, REFERENCE = 2 * RNG.normal(size=(3, 12, 5))
LABEL = RNG.integers(0, 5, 12)
ROWS = np.arange(12)
KEY = jax.random.key(3)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_true_class_probability(temperature):
  tcp = reference.true_class_probability(jnp.asarray(STUDENT), jnp.asarray(LABEL), temperature=temperature)
  np.testing.assert_allclose(tcp, softmax(STUDENT / temperature)[ROWS, LABEL], rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_true_class_probability_of_mixed_images_is_the_mean_over_their_classes(temperature):
  soft_label = RNG.dirichlet(np.ones(5), 12)
  tcp = reference.true_class_probability(
    jnp.asarray(STUDENT), jnp.asarray(LABEL), soft_label=jnp.asarray(soft_label), temperature=temperature
  )
  np.testing.assert_allclose(tcp, (soft_label * softmax(STUDENT / temperature)).sum(-1), rtol=1e-5)


def test_true_class_probability_of_unlabeled_images_is_the_largest_probability():
  label = np.where(ROWS < 3, -1, LABEL)
  tcp = reference.true_class_probability(jnp.asarray(STUDENT), jnp.asarray(label))
  p = softmax(STUDENT)
  np.testing.assert_allclose(tcp, np.where(label < 0, p.max(-1), p[ROWS, LABEL]), rtol=1e-5)


def make_inputs(teachers=(TEACHER,), temperature=1.0, axis_name=None, rows=slice(None)):
  config = reference.Reference(tcp_temperature=temperature)
  logits = [jnp.asarray(teacher[rows], jnp.float32) for teacher in teachers]
  reference_logits, targets = jnp.asarray(REFERENCE[rows], jnp.float32), Targets(jnp.asarray(LABEL[rows]))
  return reference.weighting_inputs(config, logits, reference_logits, targets, KEY, axis_name)


P, Q = softmax(TEACHER), softmax(REFERENCE)
TEACHER_TCP, REFERENCE_TCP = P[ROWS, LABEL], Q[ROWS, LABEL]
TOP = np.sort(P, axis=-1)
EXPECTED = {
  "constant": np.ones(12),
  "one_minus_teacher_tcp": 1 - TEACHER_TCP,
  "teacher_tcp": TEACHER_TCP,
  "teacher_entropy": -(P * np.log(P)).sum(-1) / np.log(5),
  "one_minus_teacher_margin": 1 - (TOP[:, -1] - TOP[:, -2]),
  "reference_tcp": REFERENCE_TCP,
  "one_minus_reference_tcp": 1 - REFERENCE_TCP,
  "teacher_reference_disagreement": np.abs(P - Q).sum(-1) / 2,
  "teacher_reference_agreement": 1 - np.abs(P - Q).sum(-1) / 2,
}
SHUFFLED = {"shuffled_reference_tcp": REFERENCE_TCP, "shuffled_one_minus_teacher_tcp": 1 - TEACHER_TCP}


@pytest.mark.parametrize("name", EXPECTED)
def test_weights_are_those_of_the_formula_and_may_be_normalized(name):
  weights = reference.sample_weights(make_inputs(), weighting=name)
  np.testing.assert_allclose(weights, EXPECTED[name], rtol=1e-5)
  assert (weights >= 0).all() and (weights <= 1 + 1e-6).all()
  normalized = reference.sample_weights(make_inputs(), weighting=name, normalize=True)
  np.testing.assert_allclose(normalized, EXPECTED[name] / EXPECTED[name].mean(), rtol=1e-5)


def test_every_weighting_is_tested():
  assert set(reference.WEIGHTINGS) == {*EXPECTED, *SHUFFLED, "learned_teacher_tcp"}


def test_the_default_weight_is_the_true_class_probability_of_the_reference():
  assert reference.Reference().weighting == "reference_tcp"
  np.testing.assert_allclose(reference.sample_weights(make_inputs()), REFERENCE_TCP, rtol=1e-5)


@pytest.mark.parametrize("name", SHUFFLED)
def test_shuffled_weights_belong_to_other_images(name):
  weights = np.asarray(reference.WEIGHTINGS[name](make_inputs()))
  np.testing.assert_allclose(np.sort(weights), np.sort(SHUFFLED[name]), rtol=1e-5)
  assert (np.abs(weights - SHUFFLED[name]) > 1e-6).sum() > 6


@pytest.mark.parametrize("name", SHUFFLED)
def test_devices_shuffle_the_global_batch_as_one_device(name):
  halves = [make_inputs(rows=slice(i, i + 6))._replace(key=None) for i in (0, 6)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *halves)

  def weights(inputs):
    return reference.WEIGHTINGS[name](inputs._replace(key=KEY, axis_name="d"))

  by_device = jax.pmap(weights, axis_name="d")(stacked)
  np.testing.assert_allclose(by_device.ravel(), reference.WEIGHTINGS[name](make_inputs()), rtol=1e-6)


def test_inputs_are_means_over_several_teachers():
  inputs = make_inputs((TEACHER, REFERENCE))
  np.testing.assert_allclose(inputs.teacher_tcp, (TEACHER_TCP + REFERENCE_TCP) / 2, rtol=1e-5)
  np.testing.assert_allclose(inputs.teacher_probs, (P + Q) / 2, rtol=1e-5)


def test_inputs_use_the_temperature_of_the_weights():
  inputs = make_inputs(temperature=3.0)
  np.testing.assert_allclose(inputs.reference_tcp, softmax(REFERENCE / 3)[ROWS, LABEL], rtol=1e-5)
  np.testing.assert_allclose(inputs.reference_probs, softmax(REFERENCE / 3), rtol=1e-5)
  np.testing.assert_allclose(inputs.teacher_probs, softmax(TEACHER / 3), rtol=1e-5)


def test_confident_networks_give_finite_weights_and_gradients():
  logits = jnp.where(jnp.arange(5) == 0, 200.0, -200.0)[None]

  def inputs(teacher):
    targets = Targets(jnp.array([0]))
    return reference.weighting_inputs(reference.Reference(), [teacher], logits, targets, KEY)

  @jax.jit
  def all_weights(teacher):
    return {name: weighting(inputs(teacher)).sum() for name, weighting in reference.WEIGHTINGS.items()}

  values, gradients = all_weights(logits), jax.jit(jax.jacrev(all_weights))(logits)
  for name, value in values.items():
    assert np.isfinite(value) and np.isfinite(gradients[name]).all(), name


def tcp_inputs(reference_tcp, axis_name=None):
  """Inputs of which only the reference's true-class probabilities are defined."""
  tcp = jnp.asarray(reference_tcp, jnp.float32)
  undefined = jnp.full((*tcp.shape, 2), jnp.nan)
  return reference.WeightingInputs(undefined[..., 0], tcp, undefined, undefined, KEY, axis_name)


def test_weights_of_zero_stay_zero_when_normalized():
  np.testing.assert_array_equal(reference.sample_weights(tcp_inputs(jnp.zeros(3)), normalize=True), 0)


def test_weights_are_normalized_over_all_devices():
  tcp = jnp.array([[0.1, 0.3], [0.7, 0.9]])

  def weights(tcp):
    return reference.sample_weights(tcp_inputs(tcp, "d"), normalize=True)

  by_device = jax.pmap(weights, axis_name="d")(tcp)
  expected = reference.sample_weights(tcp_inputs(tcp.ravel()), normalize=True)
  np.testing.assert_allclose(by_device.ravel(), expected, rtol=1e-6)


def test_learned_weights_start_at_one_and_are_trained():
  """At the minimum over a of exp(-a) L + a, the weight is 1 / L."""
  stage = networks.make_stage(("kd", 1.0), reference={"weight": 1.0, "weighting": "learned_teacher_tcp"})
  state, frozen = networks.init_stage(stage)
  assert jax.device_get(state.params["reference"]) == {"a": 0.0, "b": 0.0}
  after, metrics = jax.jit(make_train_step(stage))(state, frozen, networks.batch_of(0))
  assert metrics["reference_weight"] == 1.0
  assert float(after.params["reference"]["a"]) != 0 and float(after.params["reference"]["b"]) != 0
  config, logits = (
    reference.Reference(weighting="learned_teacher_tcp"),
    (jnp.asarray(STUDENT), jnp.asarray(REFERENCE)),
  )

  @jax.jit
  @jax.grad
  def gradient(a):
    params = {"a": a, "b": 0.0}
    return reference.weighted_reference_loss(config, params, *logits, make_inputs())[0].mean()

  plain = reference.weighted_divergence(*logits, jnp.ones(12)).mean()
  np.testing.assert_allclose(gradient(jnp.log(plain)), 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(reference.TEACHER_FREE))
def test_teacher_free_weightings_train_without_a_teacher(name):
  stage = networks.make_stage(reference={"weighting": name})
  state, frozen = networks.init_stage(stage)
  metrics = jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))[1]
  assert "reference" in metrics and "teacher_tcp" not in metrics


WEIGHTS = np.linspace(0, 1, 12)


def test_the_published_loss_and_its_gradient(float64):
  """Eq. 8: KL(student || reference) without a factor."""
  q, p = softmax(REFERENCE), softmax(STUDENT)

  def loss(student):
    return reference.weighted_divergence(student, jnp.asarray(REFERENCE), jnp.asarray(WEIGHTS))

  divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
  np.testing.assert_allclose(loss(jnp.asarray(STUDENT)), WEIGHTS * divergence[:, 0], rtol=1e-9)
  gradient = jax.grad(lambda student: loss(student).sum())(jnp.asarray(STUDENT))
  expected = WEIGHTS[:, None] * p * (np.log(p / q) - divergence)
  np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_the_divergence_from_the_reference_and_its_gradient(float64):
  def loss(student):
    return reference.weighted_divergence(
      student,
      jnp.asarray(REFERENCE),
      jnp.asarray(WEIGHTS),
      divergence="reference_to_student",
      temperature=2.0,
      scale_by_temperature_squared=True,
    )

  p, q = softmax(REFERENCE / 2), softmax(STUDENT / 2)
  expected = WEIGHTS * 4 * (p * np.log(p / q)).sum(-1)
  np.testing.assert_allclose(loss(jnp.asarray(STUDENT)), expected, rtol=1e-9, atol=1e-12)
  gradient = jax.grad(lambda student: loss(student).sum())(jnp.asarray(STUDENT))
  np.testing.assert_allclose(gradient, WEIGHTS[:, None] * 2 * (q - p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", reference.DIVERGENCES)
@pytest.mark.parametrize("scaled", [False, True])
def test_temperature_and_factor_of_both_divergences(divergence, scaled, float64):
  p, q = softmax(STUDENT / 3), softmax(REFERENCE / 3)
  first, second = (p, q) if divergence == "student_to_reference" else (q, p)
  values = reference.weighted_divergence(
    jnp.asarray(STUDENT),
    jnp.asarray(REFERENCE),
    jnp.ones(12),
    divergence=divergence,
    temperature=3.0,
    scale_by_temperature_squared=scaled,
  )
  expected = (9 if scaled else 1) * (first * np.log(first / second)).sum(-1)
  np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_an_unknown_divergence_is_refused():
  with pytest.raises(ValueError, match="divergence: 'both' is not one of student_to_reference"):
    reference.weighted_divergence(
      jnp.asarray(STUDENT), jnp.asarray(REFERENCE), jnp.ones(12), divergence="both"
    )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"scale_by_temperature_squared": True}, "scale_by_temperature_squared: True, but temperature is 1"),
    ({"weighting": "constant", "tcp_temperature": 4.0}, "tcp_temperature: 4.0, but weighting 'constant'"),
    ({"weighting": "constant", "normalize": True}, "normalize: True, but weighting 'constant'"),
    ({"weighting": "learned_teacher_tcp", "normalize": True}, "normalize: True, but weighting 'learned"),
  ],
)
def test_options_that_make_others_meaningless(options, message):
  assert reference.conflicting_option(reference.Reference(**options)).startswith(message)
  assert reference.conflicting_option(reference.Reference()) is None


def test_a_copy_of_variables_outlives_the_original():
  variables = {"w": jnp.arange(3.0)}
  copy = reference.copy_variables(variables)
  variables["w"].delete()
  np.testing.assert_array_equal(copy["w"], [0, 1, 2])
