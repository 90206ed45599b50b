"""Tests of training/loop.py: events of the loop, and metrics.

engine/experiment_test.py tests whole runs.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.training import loop
from smskd_jax.training.loop import MetricAccumulator, NonFiniteError

CONFIG = loop.LoopConfig(
  epochs=4,
  batch_size=3,
  steps_per_epoch=5,
  evaluate_every_epochs=3,
  checkpoint_every_steps=4,
  log_every_steps=2,
)


def test_steps_of_events():
  steps = range(1, CONFIG.num_steps + 1)
  assert [s for s in steps if CONFIG.should_evaluate(s)] == [15, 20]  # every third epoch, and the last
  assert [s for s in steps if CONFIG.should_checkpoint(s)] == [4, 8, 12, 16]  # the end has the result instead
  assert [s for s in steps if CONFIG.should_log(s)] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]


def test_metrics_from_a_checkpoint_give_equal_means():
  values = [0.1, 0.2, 0.7, 1.5, 2.5]
  whole, first = MetricAccumulator(), MetricAccumulator()
  for value in values:
    whole.add({"loss": jnp.float32(value)})
  for value in values[:2]:
    first.add({"loss": jnp.float32(value)})
  resumed = MetricAccumulator(first.fetch(2))
  for value in values[2:]:
    resumed.add({"loss": jnp.float32(value)})
  assert resumed.flush(5) == whole.flush(5)
  assert resumed.fetch(5) == [{}]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_names_the_bad_term_before_the_loss(bad):
  accumulator = MetricAccumulator()
  accumulator.add({"loss": jnp.float32(1), "task": jnp.float32(1)})
  accumulator.add({"loss": jnp.float32(bad), "task": jnp.float32(bad)})
  with pytest.raises(NonFiniteError, match=f"step 8: task is {bad}"):
    accumulator.fetch(8)


def test_a_call_of_several_steps_ends_at_an_event():
  config = CONFIG._replace(epochs=2, log_every_steps=4, checkpoint_every_steps=7, probe_every_steps=0)

  def chunks(steps_per_call, first=0, config=config):
    batches = loop._chunk_steps(config, range(first, 10), first, steps_per_call)
    return [len(chunk) for chunk in batches]

  # Events after the steps 4 (log), 5 (epoch), 7 (checkpoint), 8 (log) and 10 (end).
  assert chunks(1) == [1] * 10
  assert chunks(2) == [2, 2, 1, 2, 1, 2]
  assert chunks(3) == [3, 1, 1, 1, 1, 1, 1, 1]
  assert chunks(2, first=5) == [2, 1, 2]
  assert chunks(100) == [1] * 10
  probing = config._replace(probe_every_steps=2)
  assert chunks(2, config=probing)[0] == 2, "diagnostics run before a call"


def test_metrics_of_several_steps_in_one_call():
  accumulator = MetricAccumulator()
  accumulator.add({"loss": jnp.float32(1), "task": jnp.float32(2)})
  accumulator.add({"loss": jnp.array([2.0, 6.0]), "task": jnp.array([0.0, 4.0])})
  assert accumulator.flush(3) == [{"train/loss": 3, "train/task": 2}]
  accumulator.add({"loss": jnp.array([1.0, np.nan])})
  with pytest.raises(NonFiniteError, match="step 5: loss is nan"):
    accumulator.fetch(5)
