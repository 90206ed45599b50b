"""Tests of training/weighting.py: every weighting by hand, and in the reference term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.training import reference, weighting
from smskd_jax.training.stage import make_train_step

RNG = np.random.default_rng(0)
TEACHER, REFERENCE = 2 * RNG.normal(size=(2, 12, 5))
LABEL = RNG.integers(0, 5, 12)
KEY = jax.random.key(3)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def inputs(teachers=(TEACHER,), temperature=1.0, axis_name=None, rows=slice(None)):
  settings = reference.Reference(tcp_temperature=temperature)
  logits = [jnp.asarray(t[rows], jnp.float32) for t in teachers]
  own, label = jnp.asarray(REFERENCE[rows], jnp.float32), jnp.asarray(LABEL[rows])
  return reference.weighting_inputs(settings, logits, own, label, None, KEY, axis_name)


P, Q = softmax(TEACHER), softmax(REFERENCE)
TCP, OWN = P[np.arange(12), LABEL], Q[np.arange(12), LABEL]
TOP = np.sort(P, axis=-1)
BY_HAND = {
  "constant": np.ones(12),
  "one_minus_teacher_tcp": 1 - TCP,
  "teacher_tcp": TCP,
  "teacher_entropy": -(P * np.log(P)).sum(-1) / np.log(5),
  "one_minus_teacher_margin": 1 - (TOP[:, -1] - TOP[:, -2]),
  "reference_tcp": OWN,
  "one_minus_reference_tcp": 1 - OWN,
  "teacher_reference_disagreement": np.abs(P - Q).sum(-1) / 2,
  "teacher_reference_agreement": 1 - np.abs(P - Q).sum(-1) / 2,
}


SHUFFLED = {"shuffled_reference_tcp": OWN, "shuffled_one_minus_teacher_tcp": 1 - TCP}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name):
  weights = weighting.WEIGHTINGS[name](inputs())
  np.testing.assert_allclose(weights, BY_HAND[name], rtol=1e-5)
  assert (weights >= 0).all() and (weights <= 1 + 1e-6).all()


def test_every_weighting_is_tested():
  assert set(weighting.WEIGHTINGS) == {*BY_HAND, *SHUFFLED, "learned_teacher_tcp"}


@pytest.mark.parametrize("name", SHUFFLED)
def test_shuffled_has_the_same_weights_elsewhere(name):
  weights = np.asarray(weighting.WEIGHTINGS[name](inputs()))
  np.testing.assert_allclose(np.sort(weights), np.sort(SHUFFLED[name]), rtol=1e-5)
  assert (np.abs(weights - SHUFFLED[name]) > 1e-6).sum() > 6


@pytest.mark.parametrize("name", SHUFFLED)
def test_devices_shuffle_the_whole_batch_as_one_does(name):
  rows = lambda i: slice(6 * i, 6 * i + 6)
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *(inputs(rows=rows(i))._replace(key=None) for i in (0, 1)))
  of_device = lambda own: weighting.WEIGHTINGS[name](own._replace(key=KEY, axis_name="d"))
  each = jax.pmap(of_device, axis_name="d")(stacked)
  np.testing.assert_allclose(each.ravel(), weighting.WEIGHTINGS[name](inputs()), rtol=1e-6)


def test_of_several_teachers_the_means_count():
  found = inputs((TEACHER, REFERENCE))
  np.testing.assert_allclose(found.teacher_tcp, (TCP + OWN) / 2, rtol=1e-5)
  np.testing.assert_allclose(found.teacher, (P + Q) / 2, rtol=1e-5)


def test_sure_networks_give_finite_weights_and_gradients():
  sure = jnp.where(jnp.arange(5) == 0, 200.0, -200.0)[None]
  make = lambda z: reference.weighting_inputs(reference.Reference(), [z], sure, jnp.array([0]), None, KEY)
  for name, weigh in weighting.WEIGHTINGS.items():
    value, gradient = jax.value_and_grad(lambda z, weigh=weigh: weigh(make(z)).sum())(sure)
    assert np.isfinite(value) and np.isfinite(gradient).all(), name


def test_learned_weights_start_at_one_and_find_their_scale():
  """At the minimum over a of exp(-a) L + a, the weight is 1 / L."""
  stage = networks.make_stage(("kd", 1.0), reference={"weight": 1.0, "weighting": "learned_teacher_tcp"})
  state, frozen = networks.init_stage(stage)
  assert jax.device_get(state.params["reference"]) == {"a": 0.0, "b": 0.0}
  after, metrics = jax.jit(make_train_step(stage))(state, frozen, networks.batch_of(0))
  assert metrics["reference_weight"] == 1.0
  assert float(after.params["reference"]["a"]) != 0 and float(after.params["reference"]["b"]) != 0
  known = inputs()
  values = lambda a: reference.weighted_reference_loss(
    reference.Reference(weighting="learned_teacher_tcp"),
    {"a": a, "b": 0.0},
    jnp.asarray(TEACHER),
    jnp.asarray(REFERENCE),
    known,
  )[0].mean()
  plain = reference.weighted_divergence(jnp.asarray(TEACHER), jnp.asarray(REFERENCE), jnp.ones(12)).mean()
  np.testing.assert_allclose(jax.grad(values)(jnp.log(plain)), 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(weighting.TEACHER_FREE))
def test_what_needs_no_teacher_does_without(name):
  stage = networks.make_stage(reference={"weighting": name})
  state, frozen = networks.init_stage(stage)
  metrics = jax.eval_shape(make_train_step(stage), state, frozen, networks.batch_of(0))[1]
  assert "reference" in metrics and "teacher_tcp" not in metrics
