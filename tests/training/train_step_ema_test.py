"""Tests of training/train_step.py with a moving average of the student's variables."""

import jax
import numpy as np
import pytest

import networks
from smskd_jax.runtime import checkpoint, parallel
from smskd_jax.training import optimizer
from smskd_jax.training.stage import Stage, raw_student_variables, student_variables
from smskd_jax.training.train_step import make_train_step
import tiny

STAGE = Stage(tiny.Tiny(4, networks.NUM_CLASSES), optimizer.sgd(0.1), ema_decay=0.9)
DEVICES = jax.local_devices()[:1]


def init_replicated(stage):
  return parallel.replicate(networks.init_stage(stage), DEVICES)


def train(step, state, frozen, steps):
  """Copies of the states after each step; a step donates its state."""
  states = []
  for i in steps:
    state, _ = step(state, frozen, parallel.shard(networks.batch_of(i), DEVICES))
    states.append(jax.tree.map(np.array, state))
  return states


@pytest.fixture(scope="module")
def step():
  return parallel.compile_step(make_train_step(STAGE, parallel.AXIS), DEVICES)


@pytest.fixture(scope="module")
def states(step):
  """The initial state, and the states after each of five steps."""
  state, frozen = init_replicated(STAGE)
  return [jax.tree.map(np.array, state), *train(step, state, frozen, range(5))]


def test_the_average_starts_at_the_initial_variables(states):
  jax.tree.map(np.testing.assert_array_equal, student_variables(states[0]), raw_student_variables(states[0]))


def test_the_average_is_of_parameters_and_batch_statistics(states):
  first, *others = states
  average = raw_student_variables(first)
  assert set(average) == {"params", "batch_stats"}
  for state in others:
    average = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, average, raw_student_variables(state))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), student_variables(state), average
    )
  last = raw_student_variables(others[-1])
  differ = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, average, last)
  assert all(jax.tree.leaves(differ)), "the average would pass for the variables"


def test_the_average_does_not_change_training(states):
  stage = STAGE._replace(ema_decay=0.0)
  state, frozen = init_replicated(stage)
  plain = parallel.compile_step(make_train_step(stage, parallel.AXIS), DEVICES)
  state = train(plain, state, frozen, range(5))[-1]
  assert state.ema == ()
  raw, expected = raw_student_variables(state), raw_student_variables(states[-1])
  jax.tree.map(np.testing.assert_array_equal, student_variables(state), raw)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), raw, expected)


def test_a_restored_checkpoint_continues_the_average(states, step, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(2, states[2], {})
  checkpoints.close()
  like, frozen = init_replicated(STAGE)
  restored = checkpoint.Checkpoints(tmp_path).restore(like, pytest.fail)
  last = train(step, restored.state, frozen, range(2, 5))[-1]
  jax.tree.map(np.testing.assert_array_equal, last, states[-1])
