"""Tests of analysis/stages.py: order of stages, and metrics along their training."""

import numpy as np
import pytest

from analysis import fake_runs
from smskd_jax.analysis import records, stages


def make_stages(*pairs):
  return [
    {"name": n, "key": n, "network": "s", "epochs": 2, "inputs": {"init": s, "teachers": []}}
    for n, s in pairs
  ]


def test_ancestors():
  chain = make_stages(("a", None), ("b", "a"), ("x", None), ("c", "b"))
  assert [stage["name"] for stage in stages.ancestors(chain, chain[3])] == ["a", "b", "c"]
  assert [stage["name"] for stage in stages.ancestors(chain, chain[2])] == ["x"]


def test_the_last_or_the_best_validated_stage_is_selected():
  chain = make_stages(("a", None), ("b", None))
  for stage, accuracy in zip(chain, (0.9, 0.8), strict=True):
    stage["metrics"] = {"last": {"validation/accuracy": accuracy}}
  assert stages.selected_stage(chain, "s")["name"] == "a"
  chain[1]["inputs"]["init"] = "a"
  assert stages.selected_stage(chain, "s")["name"] == "b"


def test_students_are_networks_that_are_no_teachers(tmp_path):
  record = records.read_run("WORKDIR", fake_runs.run(tmp_path / "run"))
  assert list(stages.students(record.stages)) == ["student"]
  assert list(stages.students(record.stages[:1])) == ["teacher"]


def line(step, epoch, **values):
  return {"step": step, "epoch": epoch} | {f"train/{name}": value for name, value in values.items()}


def test_windows_are_means_in_the_middle_of_their_time_and_short_ones_join_those_before():
  lines = [line(8, 0.8, loss=4.0), line(10, 1.0, loss=9.0), line(16, 1.6, loss=2.0), line(20, 2.0, loss=1.0)]
  assert stages.window_means(lines, "train/loss") == [
    (pytest.approx(0.5), pytest.approx(5.0)),  # (8 * 4 + 2 * 9) / 10
    (pytest.approx(1.3), pytest.approx(2.0)),
    (pytest.approx(1.8), pytest.approx(1.0)),
  ]


def test_series_are_along_all_stages_of_a_network():
  chain = make_stages(("a", None), ("b", "a"))
  curves = {
    "a": [{"epoch": 2.0, "test/accuracy": 0.5}],
    "b": [{"epoch": 1.0, "test/accuracy": 0.6, "test/nll": 1.0}],
  }
  assert stages.metric_series(chain, curves, "test/accuracy") == {"a": [(2.0, 0.5)], "b": [(3.0, 0.6)]}
  assert stages.metric_series(chain, curves, "test/nll") == {"b": [(3.0, 1.0)]}
  curves["b"].append(line(10, 1.0, loss=2.0) | {"train/gradient_norm/task": 3.0})
  assert stages.metric_series(chain, curves, "train/loss") == {"b": [(2.5, 2.0)]}
  assert stages.metric_series(chain, curves, "train/gradient_norm/task") == {"b": [(3.0, 3.0)]}


def test_epochs_are_means_weighted_by_steps():
  lines = [
    line(1, 0.1, x=9.0),
    line(6, 0.6, w=1.0, v=0.0),
    line(10, 1.0, w=2.0, v=1.0),
    line(20, 2.0, w=3.0, v=1.0),
  ]
  ends, means = stages.epoch_means(lines, ("train/w", "train/v"))
  np.testing.assert_allclose(ends, [1, 2])
  np.testing.assert_allclose(means["train/w"], [1.4, 3.0])
  np.testing.assert_allclose(means["train/v"], [0.4, 1.0])
