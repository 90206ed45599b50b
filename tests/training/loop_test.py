"""Tests of training/loop.py: when what happens. Whole runs are in experiment_test.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import loop
from smskd_jax.training.window import MetricAccumulator, NonFiniteError

BUDGET = loop.LoopConfig(
  epochs=4,
  batch_size=3,
  steps_per_epoch=5,
  evaluate_every_epochs=3,
  checkpoint_every_steps=4,
  log_every_steps=2,
)


def test_when_what_happens():
  steps = range(1, BUDGET.num_steps + 1)
  assert [s for s in steps if BUDGET.should_evaluate(s)] == [15, 20]  # every third epoch, and the last
  assert [s for s in steps if BUDGET.should_checkpoint(s)] == [
    4,
    8,
    12,
    16,
  ]  # not at the end: the result is there then
  assert [s for s in steps if BUDGET.should_log(s)] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]


def test_a_window_that_was_saved_gives_the_same_means():
  values = [0.1, 0.2, 0.7, 1.5, 2.5]
  whole, first = MetricAccumulator(), MetricAccumulator()
  for value in values:
    whole.add({"loss": jnp.float32(value)})
  for value in values[:2]:
    first.add({"loss": jnp.float32(value)})
  continued = MetricAccumulator(first.fetch(2))
  for value in values[2:]:
    continued.add({"loss": jnp.float32(value)})
  assert continued.flush(5) == whole.flush(5)
  assert continued.fetch(5) == [{}]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_term_is_named_before_the_loss_that_it_spoils(bad):
  window = MetricAccumulator()
  window.add({"loss": jnp.float32(1), "task": jnp.float32(1)})
  window.add({"loss": jnp.float32(bad), "task": jnp.float32(bad)})
  with pytest.raises(NonFiniteError, match=f"step 8: task is {bad}"):
    window.fetch(8)


def test_steps_that_are_one_program_end_where_something_happens():
  budget = BUDGET._replace(epochs=2, log_every_steps=4, checkpoint_every_steps=7, probe_every_steps=0)
  chunks = lambda at_once, first=0: [
    len(c) for c in loop._chunk_steps(budget, range(first, 10), first, at_once)
  ]
  # Something happens after the steps 4 (log), 5 (epoch), 7 (checkpoint), 8 (log) and 10 (the end).
  assert chunks(1) == [1] * 10
  assert chunks(2) == [2, 2, 1, 2, 1, 2]
  assert chunks(3) == [3, 1, 1, 1, 1, 1, 1, 1]
  assert chunks(2, first=5) == [2, 1, 2]
  assert chunks(100) == [1] * 10
  probing = budget._replace(probe_every_steps=2)
  assert [len(c) for c in loop._chunk_steps(probing, range(10), 0, 2)][0] == 2, "probes come before a program"


def test_a_window_takes_the_metrics_of_several_steps():
  window = MetricAccumulator()
  window.add({"loss": jnp.float32(1), "task": jnp.float32(2)})
  window.add({"loss": jnp.array([2.0, 6.0]), "task": jnp.array([0.0, 4.0])})
  assert window.flush(3) == [{"train/loss": 3, "train/task": 2}]
  window.add({"loss": jnp.array([1.0, np.nan])})
  with pytest.raises(NonFiniteError, match="step 5: loss is nan"):
    window.fetch(5)
