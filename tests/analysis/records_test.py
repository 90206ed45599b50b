"""Tests of analysis/records.py: what is read of runs, and what is made of their lines."""

import json
import shutil

import numpy as np
import pytest

from analysis import made
from smskd_jax.analysis import records
from smskd_jax.errors import UserError
from smskd_jax.runtime import workdir


def test_reads_what_stages_left(tmp_path):
  record = records.read("WORKDIR", made.run(tmp_path / "run", seed=3))
  assert record.title == "run: digits, seed 3"
  assert [stage["name"] for stage in record.stages] == ["teacher", "fitnet", "kd"]
  assert record.curves["kd"][-1]["epoch"] == 3.0
  assert record.choices["kd"]["test"].shape == (4, made.IMAGES)
  assert record.about["kd"]["git_revision"] == "abc"


def test_a_store_that_has_moved_is_found_beside(tmp_path):
  folder = made.run(tmp_path / "run", store=tmp_path / "store")
  shutil.move(tmp_path / "store", tmp_path / "moved")
  assert len(records.read("WORKDIR", folder, [tmp_path / "moved"]).curves["kd"]) > 4
  shutil.move(tmp_path / "moved", folder / "store")
  assert len(records.read("WORKDIR", folder).curves["kd"]) > 4


def test_without_a_store_the_results_are_left(tmp_path):
  folder = made.run(tmp_path / "run")
  shutil.rmtree(folder / "store")
  record = records.read("WORKDIR", folder)
  assert record.curves["kd"] == [record.stages[-1]["metrics"]["last"]]
  assert not record.choices
  assert len(record.left_out) == 4 and "-kd-0 is in no store" in record.left_out[2]
  assert not record.about


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda folder: shutil.rmtree(folder), "there is no folder"),
    (lambda folder: (folder / "config.json").unlink(), "neither config.json nor study.json"),
    (lambda folder: (folder / "result.json").unlink(), "not finished"),
    (
      lambda folder: (folder / "result.json").write_text("{"),
      "result.json is damaged .*; run the run's command again",
    ),
    (
      lambda folder: (folder / "result.json").write_text("[]"),
      "result.json is damaged .it holds a list, no object",
    ),
    (lambda folder: (folder / "result.json").write_bytes(b"\xff"), "result.json is damaged .*can't decode"),
    (
      lambda folder: (folder / "result.json").write_text('{"stages": [{"name": "x"}]}'),
      "damaged: KeyError",
    ),
  ],
)
def test_mistakes_are_one_line(tmp_path, spoil, words):
  folder = made.run(tmp_path / "run")
  spoil(folder)
  with pytest.raises(UserError, match=words) as error:
    records.read("WORKDIR", folder)
  assert str(error.value).startswith("WORKDIR: ")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda path: path.unlink(), "is missing"),
    (lambda path: path.write_bytes(b"PK"), "is damaged"),
    (lambda path: path.write_bytes(b""), "is damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-200]), "is damaged"),
    (lambda path: np.savez(path, step=np.zeros(1)), "holds no predictions of the test set"),
  ],
)
def test_predictions_that_cannot_be_read_are_named(tmp_path, spoil, words):
  folder = made.run(tmp_path / "run")
  path = folder / "store" / "-kd-0" / "predictions.npz"
  spoil(path)
  record = records.read("WORKDIR", folder)
  (line,) = (line for line in record.left_out if "labels.npz" not in line)
  assert line.startswith(str(path)) and words in line and "\n" not in line
  assert set(record.choices) == {"teacher", "fitnet"}


def test_what_is_damaged_or_missing_is_left_out_and_told(tmp_path):
  folder = made.run(tmp_path / "run")
  workdir.write_labels(folder, {"test": np.zeros(made.IMAGES, int)})
  assert not records.read("WORKDIR", folder).left_out
  of = lambda name: folder / "store" / f"-{name}-0"
  (of("kd") / "predictions.npz").write_bytes(b"PK")
  (of("fitnet") / "stage.json").write_text("{")
  (of("fitnet") / "metrics.jsonl").unlink()
  shutil.rmtree(of("teacher"))
  (folder / "labels.npz").unlink()
  record = records.read("WORKDIR", folder)
  assert [line.partition(" is ")[0] for line in record.left_out] == [
    "stage 'teacher': -teacher-0",
    str(of("fitnet") / "metrics.jsonl"),
    str(of("fitnet") / "stage.json"),
    str(of("kd") / "predictions.npz"),
    str(folder / "labels.npz"),
  ]
  assert set(record.choices) == {"fitnet"} and len(record.curves["fitnet"]) == 1 and not record.labels


def test_metrics_that_were_lost_in_training_are_told(tmp_path):
  folder = made.run(tmp_path / "run")
  path = folder / "store" / "-kd-0" / "metrics.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[4:]))
  lines = records.read("WORKDIR", folder).left_out
  assert any("begins at step" in line and str(path) in line for line in lines)


def test_stages_of_versions_that_kept_less(tmp_path):
  folder = made.run(tmp_path / "run")
  result = json.loads((folder / "result.json").read_text())
  for stage in result["stages"]:
    del stage["backward_passes"], stage["metrics"]["oracle"], stage["model"]
  (folder / "result.json").write_text(json.dumps(result))
  assert len(records.read("WORKDIR", folder).stages) == 3


def stages(*pairs):
  return [
    {"name": n, "key": n, "network": "s", "epochs": 2, "inputs": {"init": s, "teachers": []}}
    for n, s in pairs
  ]


def test_chains():
  of = stages(("a", None), ("b", "a"), ("x", None), ("c", "b"))
  assert [stage["name"] for stage in records.chain(of, of[3])] == ["a", "b", "c"]
  assert [stage["name"] for stage in records.chain(of, of[2])] == ["x"]


def test_what_counts_is_the_last_stage_or_the_best_by_validation():
  of = stages(("a", None), ("b", None))
  for stage, accuracy in zip(of, (0.9, 0.8), strict=True):
    stage["metrics"] = {"last": {"validation/accuracy": accuracy}}
  assert records.chosen(of, "s")["name"] == "a"
  of[1]["inputs"]["init"] = "a"
  assert records.chosen(of, "s")["name"] == "b"


def test_students_are_nobodys_teachers(tmp_path):
  record = records.read("WORKDIR", made.run(tmp_path / "run"))
  assert list(records.students(record.stages)) == ["student"]
  assert list(records.students(record.stages[:1])) == ["teacher"]


def line(step, epoch, **values):
  return {"step": step, "epoch": epoch} | {f"train/{name}": value for name, value in values.items()}


def test_windows_are_means_in_the_middle_of_their_time_and_short_ones_join_those_before():
  lines = [line(8, 0.8, loss=4.0), line(10, 1.0, loss=9.0), line(16, 1.6, loss=2.0), line(20, 2.0, loss=1.0)]
  assert records.windows(lines, "train/loss") == [
    (pytest.approx(0.5), pytest.approx(5.0)),  # (8 * 4 + 2 * 9) / 10
    (pytest.approx(1.3), pytest.approx(2.0)),
    (pytest.approx(1.8), pytest.approx(1.0)),
  ]


def test_series_are_along_all_stages_of_a_network():
  of = stages(("a", None), ("b", "a"))
  curves = {
    "a": [{"epoch": 2.0, "test/accuracy": 0.5}],
    "b": [{"epoch": 1.0, "test/accuracy": 0.6, "test/nll": 1.0}],
  }
  assert records.series(of, curves, "test/accuracy") == {"a": [(2.0, 0.5)], "b": [(3.0, 0.6)]}
  assert records.series(of, curves, "test/nll") == {"b": [(3.0, 1.0)]}
  curves["b"].append(line(10, 1.0, loss=2.0) | {"train/gradient_norm/task": 3.0})
  assert records.series(of, curves, "train/loss") == {"b": [(2.5, 2.0)]}
  assert records.series(of, curves, "train/gradient_norm/task") == {"b": [(3.0, 3.0)]}


def test_epochs_are_means_weighted_by_steps():
  lines = [
    line(1, 0.1, x=9.0),
    line(6, 0.6, w=1.0, v=0.0),
    line(10, 1.0, w=2.0, v=1.0),
    line(20, 2.0, w=3.0, v=1.0),
  ]
  ends, means = records.by_epoch(lines, ("train/w", "train/v"))
  np.testing.assert_allclose(ends, [1, 2])
  np.testing.assert_allclose(means["train/w"], [1.4, 3.0])
  np.testing.assert_allclose(means["train/v"], [0.4, 1.0])
