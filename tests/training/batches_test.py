"""Tests of training/batches.py: the images of each step."""

import jax
import numpy as np
import pytest

from smskd_jax.data.dataset import Split
from smskd_jax.training import batches

KEY = jax.random.key(3)
TRAIN = Split(np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1), np.arange(17, dtype=np.int32) % 4)
UNLABELED = np.arange(100, 107, dtype=np.uint8).reshape(7, 1, 1, 1)
ALL = batches.InputSpec(batches.labeled_subset(TRAIN), batch_size=3, epochs=4, steps_per_epoch=5)
WITH_UNLABELED = ALL._replace(unlabeled=batches.unlabeled_subset(UNLABELED, 17), unlabeled_batch_size=2)


def indices_of(drawing, first=0):
  return [batch.index for batch in batches.iterate_batches(drawing, KEY, first)]


def test_an_epoch_has_no_image_twice_and_each_epoch_another_order():
  epochs = np.stack(indices_of(ALL)).reshape(4, 15)
  assert all(len(set(epoch)) == 15 for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_holds_the_images_of_its_index():
  for batch in batches.iterate_batches(ALL, KEY, 0):
    np.testing.assert_array_equal(batch.image.ravel(), batch.index)
    np.testing.assert_array_equal(batch.label, batch.index % 4)
    assert batch.index.dtype == np.int32


@pytest.mark.parametrize("drawing", [ALL, WITH_UNLABELED])
@pytest.mark.parametrize("first", [1, 5, 7, 19])
def test_batches_from_any_step_equal_those_of_the_whole(drawing, first):
  whole, rest = indices_of(drawing), indices_of(drawing, first)
  np.testing.assert_array_equal(
    np.reshape(rest, (20 - first, -1)), np.reshape(whole[first:], (20 - first, -1))
  )


def test_after_the_last_step_there_are_no_batches():
  assert indices_of(ALL, 20) == indices_of(WITH_UNLABELED, 20) == []


def test_unlabeled_images_follow_the_labeled_ones_and_do_not_change_their_order():
  whole = indices_of(ALL)
  for i, batch in enumerate(batches.iterate_batches(WITH_UNLABELED, KEY, 0)):
    np.testing.assert_array_equal(batch.index[:3], whole[i])
    assert (batch.label[:3] >= 0).all() and (batch.label[3:] == -1).all()
    np.testing.assert_array_equal(batch.image[3:].ravel(), batch.index[3:] - 17 + 100)
  assert WITH_UNLABELED.images_per_step == 5 and ALL.images_per_step == 3


def test_unlabeled_images_repeat_in_another_order_where_an_epoch_needs_more():
  epoch = np.concatenate([index[3:] for index in indices_of(WITH_UNLABELED)[:5]]) - 17
  first, again = epoch[:7], epoch[7:]
  assert sorted(first) == list(range(7)) and len(set(again)) == 3
  assert not (first[:3] == again).all()


def test_a_part_keeps_class_proportions_and_indices():
  label = np.repeat([0, 1, 2], [40, 20, 40]).astype(np.int32)
  part = batches.labeled_subset(Split(np.zeros((100, 1, 1, 1), np.uint8), label), 10, seed=1)
  assert np.bincount(label[part.indices]).tolist() == [4, 2, 4]
  drawing = batches.InputSpec(part, 5, 2, 2)
  assert {int(i) for index in indices_of(drawing) for i in index} == set(part.indices.tolist())
  assert (batches.labeled_subset(Split(part.image, label), 10, seed=1).indices == part.indices).all()
  assert (batches.labeled_subset(Split(part.image, label), 10, seed=2).indices != part.indices).any()


@pytest.mark.parametrize(
  "count, message", [(18, "18, but there are only 17"), (3, "leaves class 0 without an image")]
)
def test_impossible_parts_are_refused(count, message):
  label = np.repeat([0, 1, 2], [1, 8, 8]).astype(np.int32)
  with pytest.raises(ValueError, match=f"max_images: .*{message}"):
    batches.labeled_subset(TRAIN._replace(label=label), count)
