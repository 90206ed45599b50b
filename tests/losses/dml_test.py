"""Tests of losses/dml.py, alone and with the cohort that it is made for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import networks
from smskd_jax.losses import dml
from smskd_jax.losses.contract import Context
from smskd_jax.models import cohort
from smskd_jax.runtime import parallel
from smskd_jax.training import optimizer
from smskd_jax.training.stage import Stage, Term, student_variables
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Outputs
import tiny

pytestmark = pytest.mark.usefixtures("float64")

# Compiled in haste, because each program runs once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})


def logits(seed, members=2, b=4, k=5):
  return list(np.random.default_rng(seed).normal(size=(members, b, k)))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def outputs(first, *others):
  def one_network(x):
    return Outputs(jnp.asarray(x), None, (), ())

  return one_network(first)._replace(peer_outputs=tuple(map(one_network, others)))


def test_worked_by_hand():
  # (3/4, 1/4) and (1/2, 1/2): both divergences.
  p, q = np.log([[3.0, 1.0]]), np.zeros((1, 2))
  expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5) + 0.5 * np.log(2 / 3) + 0.5 * np.log(2)
  np.testing.assert_allclose(dml.loss([p, q]), [expected])
  np.testing.assert_allclose(dml.loss([2 * p, q], temperature=2.0), [4 * expected])


@pytest.mark.parametrize("members", [2, 3, 4])
def test_the_formula_in_numpy(members):
  given, temperature = logits(members, members), 2.0
  p = [softmax(x / temperature) for x in given]

  def divergence(target, own):
    return (target * np.log(target / own)).sum(-1)

  expected = sum(
    temperature**2 * divergence(p[n], p[m]) / (members - 1)
    for m in range(members)
    for n in range(members)
    if n != m
  )
  np.testing.assert_allclose(dml.loss(given, temperature=temperature), expected)


def test_zero_where_all_agree_and_whoever_is_first():
  a, b, c = logits(0, 3)
  np.testing.assert_allclose(dml.loss([a, a + 1, a - 7]), 0, atol=1e-12)
  np.testing.assert_allclose(dml.loss([a, b, c]), dml.loss([c, a, b]))


def test_each_member_learns_from_the_others_as_they_are():
  # The gradient of KL(p_n || p_m) by member m is p_m - p_n, and by member n it would not be zero.
  given = logits(1, 3)
  gradients = jax.grad(lambda x: dml.loss(x).sum())(given)
  p = [softmax(x) for x in given]
  for m, gradient in enumerate(gradients):
    others = [p[n] for n in range(3) if n != m]
    np.testing.assert_allclose(gradient, p[m] - np.mean(others, axis=0), atol=1e-12)


def test_reads_the_peers_and_no_teacher():
  method, given = dml.method(temperature=3.0), logits(2, 3)
  aux = method.init(jax.random.key(0), outputs(*given), (), None)
  rows, _ = method.apply(*aux, outputs(*given), (), Context(None))
  np.testing.assert_allclose(rows, dml.loss(given, temperature=3.0))
  ignored, _ = method.apply(*aux, outputs(*given), (outputs(given[0]),), Context(None))
  np.testing.assert_array_equal(ignored, rows)


def test_finite_at_extreme_logits():
  value, gradient = jax.value_and_grad(lambda x: dml.loss([x, -x]).sum())(np.array([[1e4, -1e4, 0.0]]))
  np.testing.assert_allclose(value, 2 * 2e4)
  assert np.isfinite(gradient).all()


def test_refuses_a_learner_without_peers():
  with pytest.raises(ValueError, match=r"dml: the student has no peers; make it network\('cohort', .*\)"):
    dml.method().init(jax.random.key(0), outputs(logits(0)[0]), (), None)


def test_refuses_members_of_different_tasks():
  with pytest.raises(
    ValueError, match=r"dml: the members of the cohort must have the same classes, got \[5, 4\]"
  ):
    dml.method().init(jax.random.key(0), outputs(np.zeros((2, 5)), np.zeros((2, 4))), (), None)


def make_stage():
  """Two different students."""
  options = {"num_classes": networks.NUM_CLASSES, "first": "tiny", "peer": "tiny", "peer_width": 0.5}
  return Stage(
    student=cohort.make(tiny.MODELS, **options),
    optimizer=optimizer.sgd(0.05),
    terms=(Term("dml", 1.0, dml.method()),),
  )


@pytest.fixture(scope="module")
def trained():
  """(metrics of each step, the last state, the first one, what is frozen) of a few steps on one batch."""
  with jax.enable_x64(True):
    stage, batch, found = make_stage(), networks.batch_of(0, dtype=np.float64), []
    first, frozen = networks.init_stage(stage, dtype=np.float64)
    state, step = first, quick(make_train_step(stage))
    for _ in range(5):
      state, metrics = step(state, frozen, batch)
      found.append(jax.device_get(metrics))
  return found, state, jax.device_get(first), frozen


def test_the_objective_is_that_of_both_members(trained):
  (metrics, *_), _, first, _ = trained
  stage, batch = make_stage(), networks.batch_of(0, dtype=np.float64)

  def train(variables):
    return stage.student.apply(variables, batch.image, train=True, mutable=["batch_stats"])

  predicted, _ = quick(train)(student_variables(first))
  members = [predicted.logits, predicted.peer_outputs[0].logits]
  task = sum(optax.softmax_cross_entropy_with_integer_labels(x, batch.label).mean() for x in members)
  np.testing.assert_allclose(metrics["task"], task, rtol=1e-9)
  np.testing.assert_allclose(metrics["distill/dml"], dml.loss(members).mean(), rtol=1e-9)
  np.testing.assert_allclose(metrics["loss"], task + dml.loss(members).mean(), rtol=1e-9)
  np.testing.assert_allclose(metrics["accuracy"], (members[0].argmax(-1) == batch.label).mean())


def test_every_member_learns(trained):
  metrics, last, first, _ = trained
  assert metrics[-1]["loss"] < metrics[0]["loss"]
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.params["student"], last.params["student"])
  assert set(moved) == {"members_0", "members_1"} and all(jax.tree.leaves(moved))


def test_four_devices_train_as_one_does(trained):
  metrics, _, state, frozen = trained
  devices = jax.local_devices()[:4]
  batch = parallel.shard(networks.batch_of(0, dtype=np.float64), devices)
  state, frozen = parallel.replicate(state, devices), parallel.replicate(frozen, devices)
  step = parallel.compile_step(make_train_step(make_stage(), parallel.AXIS), devices)
  for expected in metrics:
    state, found = step(state, frozen, batch)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-9, err_msg=name)
