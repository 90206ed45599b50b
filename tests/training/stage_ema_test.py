"""Tests of training/stage.py where it keeps a moving average of what the learner is."""

import jax
import numpy as np
import pytest

import networks
from smskd_jax.runtime import checkpoint, parallel
from smskd_jax.training import optimizer
from smskd_jax.training.stage import Stage, make_train_step, student_variables
import tiny

STAGE = Stage(tiny.Tiny(4, networks.NUM_CLASSES), optimizer.sgd(0.1), ema_decay=0.9)
DEVICES = jax.local_devices()[:1]


def raw(state):
  """What the learner is, not its average."""
  return {"params": state.params["student"], **state.model_state}


def begin(stage):
  state, frozen = networks.init_stage(stage)
  return parallel.replicate((state, frozen), DEVICES)


def trained(step, state, frozen, steps):
  """The states after each step. A step gives away the state that it gets: they are copies."""
  after = []
  for i in steps:
    state, _ = step(state, frozen, parallel.shard(networks.batch_of(i), DEVICES))
    after.append(jax.tree.map(np.array, state))
  return after


@pytest.fixture(scope="module")
def step():
  return parallel.compile_step(make_train_step(STAGE, parallel.AXIS), DEVICES)


@pytest.fixture(scope="module")
def run(step):
  """The states of five steps, from the one before the first."""
  state, frozen = begin(STAGE)
  return [jax.tree.map(np.array, state), *trained(step, state, frozen, range(5))]


def test_it_begins_with_the_learner(run):
  jax.tree.map(np.testing.assert_array_equal, student_variables(run[0]), raw(run[0]))


def test_it_is_that_of_parameters_and_batch_statistics(run):
  first, *after = run
  average = raw(first)
  assert set(average) == {"params", "batch_stats"}
  for state in after:
    average = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, average, raw(state))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), student_variables(state), average
    )
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, average, raw(after[-1]))
  assert all(jax.tree.leaves(moved)), "the average could be the learner"


def test_it_does_not_change_what_is_learned(run):
  stage = STAGE._replace(ema_decay=0.0)
  state, frozen = begin(stage)
  plain = parallel.compile_step(make_train_step(stage, parallel.AXIS), DEVICES)
  state = trained(plain, state, frozen, range(5))[-1]
  assert state.ema == ()
  jax.tree.map(np.testing.assert_array_equal, student_variables(state), raw(state))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), raw(state), raw(run[-1]))


def test_a_saved_state_continues_it(run, step, tmp_path):
  first_life = checkpoint.Checkpoints(tmp_path)
  first_life.save(2, run[2], {})
  first_life.close()
  like, frozen = begin(STAGE)
  restored = checkpoint.Checkpoints(tmp_path).restore(like, pytest.fail)
  last = trained(step, restored.state, frozen, range(2, 5))[-1]
  jax.tree.map(np.testing.assert_array_equal, last, run[-1])
