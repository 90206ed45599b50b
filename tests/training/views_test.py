"""Tests of training/views.py: a method's term of each view by itself, and of all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses.contract import Context
from smskd_jax.training import views
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, Outputs

BATCH = Batch(np.zeros((2, 1, 1, 1)), np.array([9, 9]), np.array([5, 6]))
CONTEXT = Context(BATCH, jax.random.key(0), 1.5, "batch")


def says(number):
  """The outputs of a network that says this number."""
  return Outputs(jnp.full((2, 3), number), jnp.zeros((2, 1)), (), ())


def view_of(number, num_teachers=2):
  """A view whose labels are its number, and whose teachers say 10, 20, ... more."""
  teachers = tuple(says(10.0 * (i + 1) + number) for i in range(num_teachers))
  return views.ViewInputs(
    np.full((2, 1, 1, 1), number), Targets(np.full(2, number)), teachers, None, np.float32(1)
  )


LEARNERS = [says(0.0), says(1.0), says(2.0)]
SEEN = [view_of(0), view_of(1), view_of(2)]


class Recorder:
  """A method that keeps what it is given; its loss is the learner's number, and it counts its calls."""

  def __init__(self):
    self.calls = []

  def __call__(self, *arguments):
    self.calls.append(arguments)
    method_state, learner, *_ = arguments
    return learner.logits[:, 0], method_state + 1


def numbers(networks):
  return [float(network.logits[0, 0]) for network in networks]


def keys_of(recorder):
  return [tuple(jax.random.key_data(call[3].key).tolist()) for call in recorder.calls]


def test_of_each_is_the_mean_over_views_each_with_its_own_teachers_and_labels():
  recorder = Recorder()
  value, _ = views.apply_per_view(recorder, 0, LEARNERS, SEEN, CONTEXT)
  np.testing.assert_array_equal(value, [1.0, 1.0])
  for i, (_, learner, teachers, context) in enumerate(recorder.calls):
    assert numbers([learner, *teachers]) == [i, 10 + i, 20 + i]
    assert learner.view_outputs == () and context[2:] == CONTEXT[2:]
    np.testing.assert_array_equal(context.batch.label, [i, i])
    np.testing.assert_array_equal(context.batch.index, BATCH.index)


def test_of_each_hands_what_is_remembered_from_view_to_view():
  recorder = Recorder()
  _, method_state = views.apply_per_view(recorder, 7, LEARNERS, SEEN, CONTEXT)
  assert [call[0] for call in recorder.calls] == [7, 8, 9] and method_state == 10


def test_of_each_draws_anew_for_each_view_and_for_the_first_as_if_it_were_alone():
  recorder = Recorder()
  views.apply_per_view(recorder, 0, LEARNERS, SEEN, CONTEXT)
  first, *others = keys_of(recorder)
  assert first == tuple(jax.random.key_data(CONTEXT.key).tolist())
  assert len({first, *others}) == 3


@pytest.mark.parametrize("num_teachers", [0, 1, 2])
def test_of_all_is_one_call_with_the_other_views_beside_the_first(num_teachers):
  recorder, seen = Recorder(), [view_of(i, num_teachers) for i in range(3)]
  value, method_state = views.apply_all_views(recorder, 7, LEARNERS, seen, CONTEXT)
  ((_, learner, teachers, context),) = recorder.calls
  assert method_state == 8 and context[2:] == CONTEXT[2:]
  np.testing.assert_array_equal(value, [0.0, 0.0])
  assert keys_of(recorder) == [tuple(jax.random.key_data(CONTEXT.key).tolist())]
  assert numbers([learner, *learner.view_outputs]) == [0, 1, 2]
  of_teachers = [numbers([teacher, *teacher.view_outputs]) for teacher in teachers]
  assert of_teachers == [[10, 11, 12], [20, 21, 22]][:num_teachers]
  np.testing.assert_array_equal(context.batch.label, [0, 0])


def test_of_one_view_both_are_the_method_itself():
  for run in (views.apply_per_view, views.apply_all_views):
    recorder = Recorder()
    value, method_state = run(recorder, 7, LEARNERS[1:2], SEEN[1:2], CONTEXT)
    ((_, learner, teachers, _),) = recorder.calls
    assert numbers([learner, *teachers]) == [1, 11, 21] and learner.view_outputs == ()
    np.testing.assert_array_equal(value, [1.0, 1.0])
    assert method_state == 8


@pytest.mark.parametrize("run", [views.apply_per_view, views.apply_all_views])
def test_a_view_that_lacks_a_teacher_is_refused(run):
  seen = [view_of(0, 1), view_of(1, 2)]
  with pytest.raises(ValueError, match="zip"):
    run(Recorder(), 0, LEARNERS, seen, CONTEXT)


def test_sum_and_mean():
  rows = [np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.array([2.0, 2.0])]
  np.testing.assert_array_equal(views.sum_arrays(rows), [6, 9])
  np.testing.assert_array_equal(views.mean_arrays(rows), [2, 3])
  assert views.mean_arrays(rows[:1]) is rows[0] and views.sum_arrays(rows[:1]) is rows[0]
