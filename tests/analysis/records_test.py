"""Tests of analysis/records.py: contents of runs, and missing and damaged files."""

import json
import shutil

import numpy as np
import pytest

from analysis import fake_runs
from smskd_jax.analysis import records
from smskd_jax.errors import UserError
from smskd_jax.runtime import workdir


def test_files_of_the_stages_are_read(tmp_path):
  record = records.read_run("WORKDIR", fake_runs.run(tmp_path / "run", seed=3))
  assert record.title == "run: digits, seed 3"
  assert [stage["name"] for stage in record.stages] == ["teacher", "fitnet", "kd"]
  assert record.curves["kd"][-1]["epoch"] == 3.0
  assert record.predictions["kd"]["test"].shape == (4, fake_runs.IMAGES)
  assert record.info["kd"]["git_revision"] == "abc"


def test_a_moved_store_is_found(tmp_path):
  folder = fake_runs.run(tmp_path / "run", store=tmp_path / "store")
  shutil.move(tmp_path / "store", tmp_path / "moved")
  assert len(records.read_run("WORKDIR", folder, [tmp_path / "moved"]).curves["kd"]) > 4
  shutil.move(tmp_path / "moved", folder / "store")
  assert len(records.read_run("WORKDIR", folder).curves["kd"]) > 4


def test_results_are_read_without_a_store(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  shutil.rmtree(folder / "store")
  record = records.read_run("WORKDIR", folder)
  assert record.curves["kd"] == [record.stages[-1]["metrics"]["last"]]
  assert not record.predictions
  assert len(record.warnings) == 4 and "-kd-0 is in no store" in record.warnings[2]
  assert not record.info


@pytest.mark.parametrize(
  "spoil, words",
  [
    (lambda folder: shutil.rmtree(folder), "there is no folder"),
    (lambda folder: (folder / "config.json").unlink(), "no config.json and no study.json"),
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
def test_invalid_folders_are_refused_in_one_line(tmp_path, spoil, words):
  folder = fake_runs.run(tmp_path / "run")
  spoil(folder)
  with pytest.raises(UserError, match=words) as error:
    records.read_run("WORKDIR", folder)
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
def test_unreadable_predictions_give_a_warning(tmp_path, spoil, words):
  folder = fake_runs.run(tmp_path / "run")
  path = folder / "store" / "-kd-0" / "predictions.npz"
  spoil(path)
  record = records.read_run("WORKDIR", folder)
  (line,) = (line for line in record.warnings if "labels.npz" not in line)
  assert line.startswith(str(path)) and words in line and "\n" not in line
  assert set(record.predictions) == {"teacher", "fitnet"}


def test_damaged_and_missing_files_are_left_out_with_a_warning(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  workdir.write_labels(folder, {"test": np.zeros(fake_runs.IMAGES, int)})
  assert not records.read_run("WORKDIR", folder).warnings

  def entry(name):
    return folder / "store" / f"-{name}-0"

  (entry("kd") / "predictions.npz").write_bytes(b"PK")
  (entry("fitnet") / "stage.json").write_text("{")
  (entry("fitnet") / "metrics.jsonl").unlink()
  shutil.rmtree(entry("teacher"))
  (folder / "labels.npz").unlink()
  record = records.read_run("WORKDIR", folder)
  assert [line.partition(" is ")[0] for line in record.warnings] == [
    "stage 'teacher': -teacher-0",
    str(entry("fitnet") / "metrics.jsonl"),
    str(entry("fitnet") / "stage.json"),
    str(entry("kd") / "predictions.npz"),
    str(folder / "labels.npz"),
  ]
  assert set(record.predictions) == {"fitnet"} and len(record.curves["fitnet"]) == 1 and not record.labels


def test_lost_metrics_give_a_warning(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  path = folder / "store" / "-kd-0" / "metrics.jsonl"
  path.write_text("".join(path.read_text().splitlines(keepends=True)[4:]))
  lines = records.read_run("WORKDIR", folder).warnings
  assert any("begins at step" in line and str(path) in line for line in lines)


def test_optional_fields_of_stages_may_be_missing(tmp_path):
  folder = fake_runs.run(tmp_path / "run")
  result = json.loads((folder / "result.json").read_text())
  for stage in result["stages"]:
    del stage["backward_passes"], stage["metrics"]["oracle"], stage["model"]
  (folder / "result.json").write_text(json.dumps(result))
  assert len(records.read_run("WORKDIR", folder).stages) == 3
