"""Tests of analysis/curves.py and variants.py: which pictures there are, and the numbers behind them."""

import numpy as np
import pytest

from analysis import made
from smskd_jax.analysis import curves, forgetting, records, variants


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  return records.read("WORKDIR", made.run(tmp_path_factory.mktemp("curves") / "run"))


def is_png(data):
  return data is not None and data.startswith(b"\x89PNG")


def test_pictures_are_there_where_their_data_are(record):
  students, teachers = (records.by_network(record.stages)[name] for name in ("student", "teacher"))
  lines = record.curves
  assert is_png(curves.terms(students, lines))
  assert is_png(curves.terms(teachers, lines))
  assert is_png(curves.forgotten(students, record.stages, lines))
  assert curves.forgotten(teachers, record.stages, lines) is None
  assert is_png(curves.weights(students, lines, {}))
  assert curves.weights(teachers, lines, {}) is None
  assert is_png(curves.gradients(students, lines))
  assert curves.gradients(teachers, lines) is None
  assert curves.events({}, ("lost", "gained")) is None


def test_losses_of_earlier_stages_have_a_panel_where_they_are_known(record):
  own = records.by_network(record.stages)["student"]
  without = {
    name: [{key: value for key, value in line.items() if "_loss/" not in key} for line in lines]
    for name, lines in record.curves.items()
  }
  heights = [
    int.from_bytes(curves.forgotten(own, record.stages, lines)[20:24]) for lines in (record.curves, without)
  ]
  assert heights[0] > heights[1] + 100


def test_a_run_without_its_store_has_no_curves_of_training(record):
  own = records.by_network(record.stages)["student"]
  last = {stage["name"]: [stage["metrics"]["last"]] for stage in own}
  assert curves.terms(own, last) is None
  assert curves.weights(own, last, {}) is None
  assert is_png(curves.forgotten(own, record.stages, last))


def test_weights_of_right_and_of_wrong_images_by_hand():
  # Of four images two are right, with the weights 0.2 and 0.4, and two wrong, with 0.8 and 1.0.
  means = dict(zip(curves.WEIGHTS, np.array([[0.5], [0.6], [0.15]]), strict=True))
  right, wrong = curves.of_right_and_wrong(means)
  np.testing.assert_allclose(right, [0.3])
  np.testing.assert_allclose(wrong, [0.9])


def test_images_without_labels_count_as_not_right():
  # Of four images two have labels, one of which is right, with the weight 0.2; the others weigh 0.4 each.
  means = dict(zip(curves.WEIGHTS, np.array([[0.5], [0.35], [0.05]]), strict=True))
  right, wrong = curves.of_right_and_wrong(means, labeled=0.5)
  np.testing.assert_allclose(right, [0.2])
  np.testing.assert_allclose(wrong, [0.4])


def test_the_weight_of_no_image_is_no_number():
  means = dict(zip(curves.WEIGHTS, np.array([[0.0, 1.0], [0.5, 0.5], [0.0, 0.5]]), strict=True))
  right, wrong = curves.of_right_and_wrong(means)
  np.testing.assert_array_equal(right, [np.nan, 0.5])
  np.testing.assert_array_equal(wrong, [0.5, np.nan])


def test_earlier_stages_are_called_by_their_names(record):
  own = records.by_network(record.stages)["student"]
  assert curves._earlier(own, record.stages, 1) == "fitnet"
  assert curves._earlier(own, record.stages, 2) == "stage 2"


def test_events_of_many_kinds():
  few = forgetting.Events(np.array([0, 1]), np.array([0, 0]))
  many = forgetting.Events(np.array([0, 50]), np.array([3, 0]))
  assert is_png(curves.events({"kd": few, "rkd": many}, ("lost", "gained")))


def test_variants(tmp_path, monkeypatch):
  names = [f"variant{i}" for i in range(3)]
  folder = made.study(tmp_path / "study", variants=names, gain=0.1)
  found = {name: {seed: records.read("", folder / name / f"seed{seed}") for seed in (0, 1)} for name in names}
  points = {}
  monkeypatch.setattr(
    variants, "_points", lambda axes, i, name, x, of, n, **style: points.setdefault(name, []).append((x, of))
  )
  assert is_png(variants.by_stages(variants.chains(found, "student")))
  (x, of) = points["variant1"][0]
  assert x == [1, 2]
  assert [one.mean for one in of] == [pytest.approx(60.5), pytest.approx(80.5)]
  assert of[0].std == pytest.approx(np.sqrt(0.5))
  points.clear()
  cost = variants.Cost(accuracy=70.0, images=100, frozen=50)
  assert is_png(variants.by_cost({"variant0": [cost, cost._replace(accuracy=72.0)]}))
  assert [(x, of[0].mean) for x, of in points["variant0"]] == [([100.0], 71.0), ([50.0], 71.0)]


def test_points_moved_aside_are_within_the_axes():
  from smskd_jax.analysis import figures, statistics

  _, (axes,) = figures.panels(3.0)
  variants._points(axes, 0, "one", [5e6], [statistics.summary([70.0, 72.0])], 2)
  low, high = axes.get_ylim()
  assert low < 71 - np.sqrt(2) < 71 + np.sqrt(2) < high
  assert axes.get_xlim()[0] < 5e6 < axes.get_xlim()[1]


def test_variants_along_their_training(tmp_path):
  folder = made.study(tmp_path / "study")
  found = {"anchored": {seed: records.read("", folder / "anchored" / f"seed{seed}") for seed in (0, 1)}}
  accuracy = variants._over_seeds(found["anchored"], "student", "test/accuracy")
  x, mean, std = accuracy[1]
  assert x.tolist() == [3, 4, 5, 6]
  assert mean[-1] == pytest.approx(70.5)
  assert std[-1] == pytest.approx(np.sqrt(0.5))
  assert is_png(variants.along(found, "student"))
  assert variants._over_seeds(found["anchored"], "student", "test/none") == []
