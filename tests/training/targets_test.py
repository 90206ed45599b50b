"""Tests of training/targets.py: cross-entropy with all kinds of labels, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import targets
from smskd_jax.training.targets import Targets

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(6, 4))
LABEL = np.array([2, 0, 3, 3, 1, 0], np.int32)
SOME_MISSING = np.array([2, -1, 3, -1, 1, 0], np.int32)
MIXED = RNG.dirichlet(np.ones(4), 6)  # each row adds up to 1
BY_KIND = pytest.mark.parametrize(
  ("target", "smoothing"),
  [(None, 0.0), (None, 0.1), (MIXED, 0.0), (MIXED, 0.3)],
  ids=["hard", "smoothed", "mixed", "mixed and smoothed"],
)


def log_softmax(x):
  return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def target_of(label, target, smoothing):
  """The target distribution; rows of zeros for missing labels."""
  hard = np.eye(4)[label] if target is None else target
  return ((1 - smoothing) * hard + smoothing / 4) * (label != targets.IGNORE_LABEL)[:, None]


@BY_KIND
@pytest.mark.parametrize("label", [LABEL, SOME_MISSING], ids=["all labeled", "some missing"])
def test_cross_entropy_and_its_gradient(label, target, smoothing, float64):
  def loss(logits):
    return targets.cross_entropy(logits, Targets(label, target), smoothing=smoothing)

  expected = target_of(label, target, smoothing)
  values, vjp = jax.vjp(loss, jnp.asarray(LOGITS))
  np.testing.assert_allclose(values, -(expected * log_softmax(LOGITS)).sum(-1), rtol=1e-12, atol=1e-14)
  (gradient,) = vjp(jnp.ones(6))
  softmax = np.exp(log_softmax(LOGITS))
  np.testing.assert_allclose(gradient, expected.sum(-1, keepdims=True) * softmax - expected, atol=1e-12)


@BY_KIND
def test_a_missing_label_gives_no_loss_and_no_gradient(target, smoothing):
  logits = jnp.array([[1e30, -1e30, 0, 0]] * 6, jnp.float32)

  def loss(logits):
    return targets.cross_entropy(logits, Targets(np.full(6, -1), target), smoothing=smoothing)

  values, vjp = jax.vjp(loss, logits)
  np.testing.assert_array_equal(values, 0)
  np.testing.assert_array_equal(vjp(jnp.ones(6))[0], 0)


def test_a_one_hot_soft_label_is_the_label(float64):
  whole = targets.cross_entropy(jnp.asarray(LOGITS), Targets(LABEL))
  mixed = targets.cross_entropy(jnp.asarray(LOGITS), Targets(LABEL, jnp.eye(4)[LABEL]))
  np.testing.assert_allclose(mixed, whole, rtol=1e-12)


def test_with_soft_labels_the_label_is_only_checked_for_being_missing(float64):
  def loss(label):
    return targets.cross_entropy(jnp.asarray(LOGITS), Targets(label, jnp.asarray(MIXED)))

  np.testing.assert_array_equal(loss(LABEL), loss((LABEL + 1) % 4))


def test_smoothing_by_hand():
  """With two classes, a smoothing of 0.2 gives the targets 0.9 and 0.1."""
  logits = jnp.log(jnp.array([[0.8, 0.2]]))
  value = targets.cross_entropy(logits, Targets(np.array([0], np.int32)), smoothing=0.2)
  np.testing.assert_allclose(value, [-0.9 * np.log(0.8) - 0.1 * np.log(0.2)], rtol=1e-6)


@BY_KIND
def test_extreme_logits_stay_finite(target, smoothing):
  logits = jnp.asarray(1e4 * np.sign(LOGITS), jnp.float32)

  def loss(logits):
    return targets.cross_entropy(logits, Targets(LABEL, target), smoothing=smoothing).sum()

  value, gradient = jax.value_and_grad(loss)(logits)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_logits_and_labels_of_other_ranks_are_refused():
  with pytest.raises(AssertionError):
    targets.cross_entropy(jnp.zeros((6, 4)), Targets(LABEL[:, None]))


def test_soft_labels():
  whole = targets.soft_labels(Targets(SOME_MISSING), 4)
  np.testing.assert_array_equal(whole, np.eye(4)[SOME_MISSING] * (SOME_MISSING != -1)[:, None])
  assert whole.dtype == np.float32
  mixed = targets.soft_labels(Targets(LABEL, jnp.asarray(MIXED, jnp.float32)), 4, jnp.bfloat16)
  np.testing.assert_array_equal(mixed, jnp.asarray(MIXED, jnp.float32).astype(jnp.bfloat16))
  assert mixed.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("label", "fraction"), [(LABEL, 1.0), (SOME_MISSING, 4 / 6), (SOME_MISSING[1:2], 0.0)]
)
def test_labeled_fraction(label, fraction):
  value = targets.labeled_fraction(jnp.asarray(label))
  np.testing.assert_allclose(value, fraction, rtol=1e-6, atol=1e-30)
  assert value > 0, "means are divided by it"


def test_the_labeled_fraction_spans_devices():
  label = jnp.array([[1, -1], [-1, -1], [0, 2], [3, -1]])
  by_device = jax.pmap(lambda one: targets.labeled_fraction(one, "d"), axis_name="d")(label)
  np.testing.assert_array_equal(by_device, [0.5] * 4)
