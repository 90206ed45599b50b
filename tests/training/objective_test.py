"""Tests of training/objective.py: weights of terms, and a method's loss over several views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import networks
from smskd_jax.losses.contract import Context
from smskd_jax.training import objective
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, Outputs

BATCH = Batch(np.zeros((2, 1, 1, 1)), np.array([9, 9]), np.array([5, 6]))
CONTEXT = Context(BATCH, jax.random.key(0), 1.5, "batch")


@pytest.mark.parametrize("step, expected", [(0, 1 / 4), (9, 1 / 4), (10, 2 / 4), (39, 1), (100, 1)])
def test_a_weight_warms_up_epoch_by_epoch(step, expected):
  stage = networks.make_stage(("kd", 8.0))
  stage = stage._replace(terms=(stage.terms[0]._replace(warmup_epochs=4.0),))
  np.testing.assert_allclose(objective.term_scale(stage, 0, jnp.float32(step / 10)), expected)


def test_terms_alternate():
  stage = networks.make_stage(("kd", 1.0), ("rkd", 1.0), ("logits_mse", 1.0))._replace(alternate_epochs=2)
  scales = [
    [float(objective.term_scale(stage, i, jnp.float32(epoch))) for i in range(3)]
    for epoch in (0, 1.9, 2, 3.5, 4, 5, 6)
  ]
  assert [by_term.index(1.0) for by_term in scales] == [0, 0, 1, 1, 2, 2, 0]
  assert all(sum(by_term) == 1 for by_term in scales)


def outputs_of(number):
  """Outputs of a network whose logits are all this number."""
  return Outputs(jnp.full((2, 3), number), jnp.zeros((2, 1)), (), ())


def view_of(number, num_teachers=2):
  """A view whose labels are its number, and whose teachers' logits are 10, 20, ... more."""
  teachers = tuple(outputs_of(10.0 * (i + 1) + number) for i in range(num_teachers))
  image, label = np.full((2, 1, 1, 1), number), np.full(2, number)
  return objective.ViewInputs(image, Targets(label), teachers, None, np.float32(1))


STUDENTS = [outputs_of(0.0), outputs_of(1.0), outputs_of(2.0)]
VIEWS = [view_of(0), view_of(1), view_of(2)]


class Recorder:
  """A method that records its inputs; its loss is the student's number, its state a count."""

  def __init__(self):
    self.calls = []

  def __call__(self, *arguments):
    self.calls.append(arguments)
    method_state, student, *_ = arguments
    return student.logits[:, 0], method_state + 1


def numbers(networks):
  return [float(network.logits[0, 0]) for network in networks]


def keys_of(recorder):
  return [tuple(jax.random.key_data(call[3].key).tolist()) for call in recorder.calls]


def test_per_view_the_loss_is_the_mean_and_each_view_has_its_teachers_and_labels():
  recorder = Recorder()
  value, _ = objective.apply_per_view(recorder, 0, STUDENTS, VIEWS, CONTEXT)
  np.testing.assert_array_equal(value, [1.0, 1.0])
  for i, (_, student, teachers, context) in enumerate(recorder.calls):
    assert numbers([student, *teachers]) == [i, 10 + i, 20 + i]
    assert student.view_outputs == () and context[2:] == CONTEXT[2:]
    np.testing.assert_array_equal(context.batch.label, [i, i])
    np.testing.assert_array_equal(context.batch.index, BATCH.index)


def test_per_view_the_state_passes_from_view_to_view():
  recorder = Recorder()
  _, method_state = objective.apply_per_view(recorder, 7, STUDENTS, VIEWS, CONTEXT)
  assert [call[0] for call in recorder.calls] == [7, 8, 9] and method_state == 10


def test_per_view_keys_differ_and_the_first_is_that_of_a_single_view():
  recorder = Recorder()
  objective.apply_per_view(recorder, 0, STUDENTS, VIEWS, CONTEXT)
  first, *others = keys_of(recorder)
  assert first == tuple(jax.random.key_data(CONTEXT.key).tolist())
  assert len({first, *others}) == 3


@pytest.mark.parametrize("num_teachers", [0, 1, 2])
def test_all_views_are_one_call_with_the_other_views_in_the_outputs(num_teachers):
  recorder, views = Recorder(), [view_of(i, num_teachers) for i in range(3)]
  value, method_state = objective.apply_all_views(recorder, 7, STUDENTS, views, CONTEXT)
  ((_, student, teachers, context),) = recorder.calls
  assert method_state == 8 and context[2:] == CONTEXT[2:]
  np.testing.assert_array_equal(value, [0.0, 0.0])
  assert keys_of(recorder) == [tuple(jax.random.key_data(CONTEXT.key).tolist())]
  assert numbers([student, *student.view_outputs]) == [0, 1, 2]
  by_teacher = [numbers([teacher, *teacher.view_outputs]) for teacher in teachers]
  assert by_teacher == [[10, 11, 12], [20, 21, 22]][:num_teachers]
  np.testing.assert_array_equal(context.batch.label, [0, 0])


@pytest.mark.parametrize("run", [objective.apply_per_view, objective.apply_all_views])
def test_with_one_view_both_are_the_method(run):
  recorder = Recorder()
  value, method_state = run(recorder, 7, STUDENTS[1:2], VIEWS[1:2], CONTEXT)
  ((_, student, teachers, _),) = recorder.calls
  assert numbers([student, *teachers]) == [1, 11, 21] and student.view_outputs == ()
  np.testing.assert_array_equal(value, [1.0, 1.0])
  assert method_state == 8


def test_a_view_that_lacks_a_teacher_is_refused():
  views = [view_of(0, 1), view_of(1, 2)]
  with pytest.raises(ValueError, match="zip"):
    objective.apply_all_views(Recorder(), 0, STUDENTS[:2], views, CONTEXT)


def test_a_view_without_a_student_is_refused():
  with pytest.raises(ValueError, match="zip"):
    objective.apply_per_view(Recorder(), 0, STUDENTS[:1], VIEWS[:2], CONTEXT)


def test_sum_and_mean():
  rows = [np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.array([2.0, 2.0])]
  np.testing.assert_array_equal(objective.sum_arrays(rows), [6, 9])
  np.testing.assert_array_equal(objective.mean_arrays(rows), [2, 3])
  assert objective.mean_arrays(rows[:1]) is rows[0] and objective.sum_arrays(rows[:1]) is rows[0]
