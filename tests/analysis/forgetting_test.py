"""Tests of analysis/forgetting.py."""

import numpy as np

from smskd_jax.analysis import forgetting

ANSWERS = np.array([[0, 1, 2], [0, 2, 2], [1, 1, 2], [0, 2, 2]])  # four evaluations of three images


def test_events_by_hand():
  events = forgetting.events(ANSWERS, np.array([0, 2, 2]))
  assert events.lost.tolist() == [1, 1, 0]
  assert events.gained.tolist() == [1, 2, 0]


def test_events_balance():
  random = np.random.default_rng(0)
  answers, target = random.integers(0, 3, (9, 50)), random.integers(0, 3, 50)
  events = forgetting.events(answers, target)
  net = (answers[-1] == target).astype(int) - (answers[0] == target)
  np.testing.assert_array_equal(events.gained - events.lost, net)


def test_number_of_changes():
  assert forgetting.num_changes(ANSWERS).tolist() == [2, 3, 0]
  assert forgetting.num_changes(ANSWERS[:1]).tolist() == [0, 0, 0]


def test_histogram_keeps_every_image():
  assert forgetting.histogram(np.array([0, 0, 1, 5, 9]), 3).tolist() == [2, 1, 0, 2]


def test_confusion_is_in_percent_of_the_class():
  label, answers = np.array([0, 0, 0, 0, 2, 2]), np.array([0, 0, 1, 2, 2, 0], np.uint16)
  expected = [[50, 25, 25], [0, 0, 0], [50, 0, 50]]
  np.testing.assert_allclose(forgetting.confusion(answers, label, 3), expected)
