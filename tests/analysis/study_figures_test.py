"""Tests of analysis/study_figures.py: comparisons of variants, and families of weights of the reference."""

import json

import numpy as np
import pytest

from analysis import fake_runs
import runs
from smskd_jax import report
from smskd_jax.analysis import figures, records, statistics, study_figures, training_figures
from smskd_jax.analysis.study_figures import WeightPoint
from smskd_jax.analysis.training_figures import CountBar
from smskd_jax.config import resolve


def variant(weight=0.5, stage="previous", **changes):
  """A resolved config whose last stage has a reference of this weight; `changes` are of its first student stage."""
  config = runs.tiny()
  config.stages[1].update(**changes)
  config.stages[2].reference.update(stage=stage, weight=weight)
  return resolve(config)


def test_variants_that_differ_in_the_weight_alone_make_a_line():
  variants = {
    "strong": variant(1.0),
    "none": variant(0.5, stage="none"),
    "weak": variant(0.1),
    "longer": variant(0.3, epochs=3),  # its first stage is another
  }
  found = study_figures.weight_families(variants, "student")
  assert found == {"none … strong": {"none": 0.0, "weak": 0.1, "strong": 1.0}}


def test_two_weights_make_none_and_equal_weights_are_one():
  assert not study_figures.weight_families(
    {"a": variant(0.1), "b": variant(1.0), "c": variant(1.0)}, "student"
  )


def test_families_are_apart_and_share_the_variant_without_a_reference():
  variants = {"none": variant(stage="none"), "long-none": variant(stage="none", epochs=3)}
  for weight in (0.1, 0.3):
    variants[f"short-{weight}"] = variant(weight)
    variants[f"long-{weight}"] = variant(weight, epochs=3)
    other = variant(weight)
    other["stages"][2]["reference"]["temperature"] = 7.0
    variants[f"warm-{weight}"] = other
  assert study_figures.weight_families(variants, "student") == {
    f"{none} … {name}-0.3": {none: 0.0, f"{name}-0.1": 0.1, f"{name}-0.3": 0.3}
    for name, none in (("short", "none"), ("long", "long-none"), ("warm", "none"))
  }


def test_names_of_the_last_stage_and_seeds_do_not_matter():
  variants = {f"w{weight}": variant(weight) for weight in (0.1, 0.3, 0.5)}
  for i, one in enumerate(variants.values()):
    one["stages"][2]["name"], one["seed"] = f"kd{i}", i
  assert list(study_figures.weight_families(variants, "student")) == ["w0.1 … w0.5"]


@pytest.mark.parametrize(
  "spoiled", [{}, {"stages": []}, {"stages": [{"network": "student"}]}, {"stages": None}]
)
def test_configs_of_other_versions_are_left_out(spoiled):
  assert not study_figures.weight_families(dict.fromkeys("abc", spoiled), "student")


def is_png(data):
  return data is not None and data.startswith(b"\x89PNG")


def test_figures_are_png_files():
  bars = [
    CountBar("kd after at", 6101, 481, 562),
    CountBar("a name that is much too long for the space that there is", 0, 0, 0),
  ]
  points = [WeightPoint(w, [0.5, 0.6], [3, 4], [5, 6], [70.0, 71.0]) for w in (0.0, 0.3, 1.0)]
  one_seed = [WeightPoint(w, [0.5], [3], [5], [70.0]) for w in (0.0, 0.3, 1.0)]
  for picture in (
    training_figures.count_bars(bars),
    study_figures.forgetting_by_weight({"a": points, "b": one_seed}),
  ):
    assert picture.startswith(b"\x89PNG")


def test_the_report_of_a_study_draws_iou_against_the_weight(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "to_png", lambda figure, *, crop=False: b"\x89PNG")
  names = ["none", "weak", "strong"]
  folder = fake_runs.study(tmp_path / "study", variants=names)
  told = json.loads((folder / "study.json").read_text())
  weights = {"none": variant(stage="none"), "weak": variant(0.1), "strong": variant(1.0)}
  told["study"]["variants"] = json.loads(json.dumps(weights))
  (folder / "study.json").write_text(json.dumps(told))
  drawn = []
  whole = study_figures.forgetting_by_weight
  monkeypatch.setattr(
    study_figures, "forgetting_by_weight", lambda lines: (drawn.append(lines), whole(lines))[1]
  )
  _, markdown = report.run([folder], folder)
  ((points,),) = (lines.values() for lines in drawn)
  assert [point.weight for point in points] == [0.0, 0.1, 1.0]
  assert points[0].iou == [20 / 28] * 2 and points[0].forgotten == [3] * 2 and points[0].gained == [5] * 2
  assert points[0].accuracy == pytest.approx([70.0, 71.0])
  assert "weight-of-the-reference.png" in markdown.read_text()
  told["study"]["variants"] = dict.fromkeys(names, weights["weak"])
  (folder / "study.json").write_text(json.dumps(told))
  _, markdown = report.run([folder], folder)
  assert "weight-of-the-reference.png" not in markdown.read_text() and len(drawn) == 1


def test_runs_of_a_study_without_counts_are_named(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "to_png", lambda figure, *, crop=False: b"\x89PNG")
  folder = fake_runs.study(tmp_path / "study")
  path = folder / "free" / "seed1" / "result.json"
  result = json.loads(path.read_text())
  del result["stages"][2]["forgetting"]
  path.write_text(json.dumps(result))
  _, markdown = report.run([folder], folder)
  assert "- free:1: no forgetting of stage `kd`" in markdown.read_text()


def test_numbers_by_stage_and_by_cost(tmp_path, monkeypatch):
  names = [f"variant{i}" for i in range(3)]
  folder = fake_runs.study(tmp_path / "study", variants=names, gain=0.1)
  found = {
    name: {seed: records.read_run("", folder / name / f"seed{seed}") for seed in (0, 1)} for name in names
  }
  points = {}
  monkeypatch.setattr(
    study_figures,
    "_draw_summaries",
    lambda axes, i, name, x, of, n, **style: points.setdefault(name, []).append((x, of)),
  )
  assert is_png(study_figures.accuracy_by_stage(study_figures.ancestor_chains(found, "student")))
  (x, of) = points["variant1"][0]
  assert x == [1, 2]
  assert [one.mean for one in of] == [pytest.approx(60.5), pytest.approx(80.5)]
  assert of[0].std == pytest.approx(np.sqrt(0.5))
  points.clear()
  cost = records.Outcome(70.0, 70.0, None, None, images=100, frozen=50, seconds=1.0)
  assert is_png(study_figures.accuracy_by_cost({"variant0": [cost, cost._replace(accuracy=72.0)]}))
  assert [(x, of[0].mean) for x, of in points["variant0"]] == [([100.0], 71.0), ([50.0], 71.0)]


def test_shifted_points_are_within_the_axes():
  _, (axes,) = figures.column(3.0)
  study_figures._draw_summaries(axes, 0, "one", [5e6], [statistics.summary([70.0, 72.0])], 2)
  low, high = axes.get_ylim()
  assert low < 71 - np.sqrt(2) < 71 + np.sqrt(2) < high
  assert axes.get_xlim()[0] < 5e6 < axes.get_xlim()[1]


def test_curves_are_means_over_seeds(tmp_path):
  folder = fake_runs.study(tmp_path / "study")
  found = {"anchored": {seed: records.read_run("", folder / "anchored" / f"seed{seed}") for seed in (0, 1)}}
  accuracy = study_figures.mean_curves(found["anchored"], "student", "test/accuracy")
  x, mean, std = accuracy[1]
  assert x.tolist() == [3, 4, 5, 6]
  assert mean[-1] == pytest.approx(70.5)
  assert std[-1] == pytest.approx(np.sqrt(0.5))
  assert is_png(study_figures.training_curves(found, "student"))
  assert study_figures.mean_curves(found["anchored"], "student", "test/none") == []
