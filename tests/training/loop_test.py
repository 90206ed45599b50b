"""Tests of training/loop.py: when what happens, and which images a step sees. Whole runs are in experiment_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.data.dataset import Split
from smskd_jax.training import loop

BUDGET = loop.Budget(
  epochs=4,
  batch_size=3,
  steps_per_epoch=5,
  evaluate_every_epochs=3,
  checkpoint_every_steps=4,
  log_every_steps=2,
)
TRAIN = Split(np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1), np.arange(17, dtype=np.int32) % 4)


def test_when_what_happens():
  steps = range(1, BUDGET.steps + 1)
  assert [s for s in steps if BUDGET.evaluates(s)] == [15, 20]  # every third epoch, and the last
  assert [s for s in steps if BUDGET.saves(s)] == [4, 8, 12, 16]  # not at the end: the result is there then
  assert [s for s in steps if BUDGET.logs(s)] == [2, 4, 5, 6, 8, 10, 12, 14, 15, 16, 18, 20]


def test_an_epoch_sees_no_image_twice_and_the_next_another_order():
  index = np.stack([b.index for b in loop.batches(TRAIN, jax.random.key(0), BUDGET, 0)]).reshape(4, 15)
  assert all(len(set(epoch)) == 15 for epoch in index)
  assert len({tuple(epoch) for epoch in index}) == 4


def test_a_batch_holds_the_images_of_its_index():
  for batch in loop.batches(TRAIN, jax.random.key(0), BUDGET, 0):
    np.testing.assert_array_equal(batch.image.ravel(), batch.index)
    np.testing.assert_array_equal(batch.label, batch.index % 4)


@pytest.mark.parametrize("first", [1, 5, 7, 19, 20])
def test_batches_from_any_step_are_those_of_the_whole(first):
  whole = [b.index for b in loop.batches(TRAIN, jax.random.key(3), BUDGET, 0)]
  rest = [b.index for b in loop.batches(TRAIN, jax.random.key(3), BUDGET, first)]
  np.testing.assert_array_equal(np.reshape(rest, (-1, 3)), np.reshape(whole[first:], (-1, 3)))


def test_a_window_that_was_saved_gives_the_same_means():
  values = [0.1, 0.2, 0.7, 1.5, 2.5]
  whole, first = loop.Window(), loop.Window()
  for value in values:
    whole.add({"loss": jnp.float32(value)})
  for value in values[:2]:
    first.add({"loss": jnp.float32(value)})
  continued = loop.Window(first.fetch(2))
  for value in values[2:]:
    continued.add({"loss": jnp.float32(value)})
  assert continued.means(5) == whole.means(5)
  assert continued.fetch(5) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_term_is_named_before_the_loss_that_it_spoils(bad):
  window = loop.Window()
  window.add({"loss": jnp.float32(1), "task": jnp.float32(1)})
  window.add({"loss": jnp.float32(bad), "task": jnp.float32(bad)})
  with pytest.raises(loop.NonFinite, match=f"step 8: task is {bad}"):
    window.fetch(8)
