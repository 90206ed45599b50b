"""Tests of analysis/training_figures.py: the figures of a run and their numbers."""

import numpy as np
import pytest

from analysis import fake_runs
from smskd_jax.analysis import forgetting, records, stages, training_figures


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  return records.read_run("WORKDIR", fake_runs.run(tmp_path_factory.mktemp("curves") / "run"))


def is_png(data):
  return data is not None and data.startswith(b"\x89PNG")


def test_figures_exist_where_data_were_recorded(record):
  students, teachers = (stages.by_network(record.stages)[name] for name in ("student", "teacher"))
  lines = record.curves
  assert is_png(training_figures.objective_terms(students, lines))
  assert is_png(training_figures.objective_terms(teachers, lines))
  assert is_png(training_figures.forgetting_curves(students, record.stages, lines))
  assert training_figures.forgetting_curves(teachers, record.stages, lines) is None
  assert is_png(training_figures.reference_weights(students, lines, {}))
  assert training_figures.reference_weights(teachers, lines, {}) is None
  assert is_png(training_figures.gradient_curves(students, lines))
  assert training_figures.gradient_curves(teachers, lines) is None
  assert training_figures.event_histogram({}, ("lost", "gained")) is None


def test_losses_of_earlier_stages_have_a_panel_where_they_are_known(record):
  own = stages.by_network(record.stages)["student"]
  without = {
    name: [{key: value for key, value in line.items() if "_loss/" not in key} for line in lines]
    for name, lines in record.curves.items()
  }
  heights = [
    int.from_bytes(training_figures.forgetting_curves(own, record.stages, lines)[20:24])
    for lines in (record.curves, without)
  ]
  assert heights[0] > heights[1] + 100


def test_a_run_without_its_store_has_no_curves_of_training(record):
  own = stages.by_network(record.stages)["student"]
  last = {stage["name"]: [stage["metrics"]["last"]] for stage in own}
  assert training_figures.objective_terms(own, last) is None
  assert training_figures.reference_weights(own, last, {}) is None
  assert is_png(training_figures.forgetting_curves(own, record.stages, last))


def test_mean_weights_of_correct_and_other_images_by_hand():
  # Of four images two are right, with the weights 0.2 and 0.4, and two wrong, with 0.8 and 1.0.
  means = dict(zip(training_figures.WEIGHT_MEANS, np.array([[0.5], [0.6], [0.15]]), strict=True))
  right, wrong = training_figures.mean_weights_by_correctness(means)
  np.testing.assert_allclose(right, [0.3])
  np.testing.assert_allclose(wrong, [0.9])


def test_images_without_labels_count_as_not_correct():
  # Of four images two have labels, one of which is right, with the weight 0.2; the others weigh 0.4 each.
  means = dict(zip(training_figures.WEIGHT_MEANS, np.array([[0.5], [0.35], [0.05]]), strict=True))
  right, wrong = training_figures.mean_weights_by_correctness(means, labeled_fraction=0.5)
  np.testing.assert_allclose(right, [0.2])
  np.testing.assert_allclose(wrong, [0.4])


def test_the_weight_of_no_image_is_no_number():
  means = dict(
    zip(training_figures.WEIGHT_MEANS, np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 0.5]]), strict=True)
  )
  right, wrong = training_figures.mean_weights_by_correctness(means)
  np.testing.assert_array_equal(right, [np.nan, 0.5])
  np.testing.assert_array_equal(wrong, [0.5, np.nan])


def test_earlier_stages_have_their_names(record):
  own = stages.by_network(record.stages)["student"]
  assert training_figures._earlier_name(own, record.stages, 1) == "fitnet"
  assert training_figures._earlier_name(own, record.stages, 2) == "stage 2"


def test_histogram_of_few_and_many_events():
  few = forgetting.Events(np.array([0, 1]), np.array([0, 0]))
  many = forgetting.Events(np.array([0, 50]), np.array([3, 0]))
  assert is_png(training_figures.event_histogram({"kd": few, "rkd": many}, ("lost", "gained")))
