"""Tests of analysis/reference_weights.py and of what a study's page makes of it."""

import json

import pytest

from analysis import made
import runs
from smskd_jax import report
from smskd_jax.analysis import figures, forgetting_figures, reference_weights
from smskd_jax.analysis.forgetting_figures import Bar, Point
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
  found = reference_weights.lines(variants, "student")
  assert found == {"none … strong": {"none": 0.0, "weak": 0.1, "strong": 1.0}}


def test_two_weights_make_none_and_equal_weights_are_one():
  assert not reference_weights.lines({"a": variant(0.1), "b": variant(1.0), "c": variant(1.0)}, "student")


def test_families_are_apart_and_share_the_variant_without_a_reference():
  variants = {"none": variant(stage="none"), "long-none": variant(stage="none", epochs=3)}
  for weight in (0.1, 0.3):
    variants[f"short-{weight}"] = variant(weight)
    variants[f"long-{weight}"] = variant(weight, epochs=3)
    other = variant(weight)
    other["stages"][2]["reference"]["temperature"] = 7.0
    variants[f"warm-{weight}"] = other
  assert reference_weights.lines(variants, "student") == {
    f"{none} … {name}-0.3": {none: 0.0, f"{name}-0.1": 0.1, f"{name}-0.3": 0.3}
    for name, none in (("short", "none"), ("long", "long-none"), ("warm", "none"))
  }


def test_names_of_the_last_stage_and_seeds_do_not_matter():
  variants = {f"w{weight}": variant(weight) for weight in (0.1, 0.3, 0.5)}
  for i, one in enumerate(variants.values()):
    one["stages"][2]["name"], one["seed"] = f"kd{i}", i
  assert list(reference_weights.lines(variants, "student")) == ["w0.1 … w0.5"]


@pytest.mark.parametrize(
  "spoiled", [{}, {"stages": []}, {"stages": [{"network": "student"}]}, {"stages": None}]
)
def test_configs_of_other_versions_are_left_out(spoiled):
  assert not reference_weights.lines(dict.fromkeys("abc", spoiled), "student")


def test_pictures():
  bars = [
    Bar("kd after at", 6101, 481, 562),
    Bar("a name that is much too long for the space that there is", 0, 0, 0),
  ]
  points = [Point(w, [0.5, 0.6], [3, 4], [5, 6], [70.0, 71.0]) for w in (0.0, 0.3, 1.0)]
  one_seed = [Point(w, [0.5], [3], [5], [70.0]) for w in (0.0, 0.3, 1.0)]
  for picture in (
    forgetting_figures.counts(bars),
    forgetting_figures.against_weight({"a": points, "b": one_seed}),
  ):
    assert picture.startswith(b"\x89PNG")


def test_the_page_of_a_study_draws_iou_against_the_weight(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "DPI", 20)
  names = ["none", "weak", "strong"]
  folder = made.study(tmp_path / "study", variants=names)
  told = json.loads((folder / "study.json").read_text())
  weights = {"none": variant(stage="none"), "weak": variant(0.1), "strong": variant(1.0)}
  told["study"]["variants"] = json.loads(json.dumps(weights))
  (folder / "study.json").write_text(json.dumps(told))
  drawn = []
  whole = forgetting_figures.against_weight
  monkeypatch.setattr(
    forgetting_figures, "against_weight", lambda lines: (drawn.append(lines), whole(lines))[1]
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
  monkeypatch.setattr(figures, "DPI", 20)
  folder = made.study(tmp_path / "study")
  path = folder / "free" / "seed1" / "result.json"
  result = json.loads(path.read_text())
  del result["stages"][2]["forgetting"]
  path.write_text(json.dumps(result))
  _, markdown = report.run([folder], folder)
  assert "- free:1: no forgetting of stage `kd`" in markdown.read_text()
