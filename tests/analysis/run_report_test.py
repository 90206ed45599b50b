"""Tests of the summary of analysis/run_report.py."""

import json

from smskd_jax.analysis import run_report


def stage(name, accuracy, *, validation=None, **metrics):
  last = {
    "step": 10,
    "epoch": 2.0,
    "test/accuracy": accuracy,
    "test/top5": 1.0,
    "test/nll": 0.5,
    "test/ece": 0.02,
  }
  return {
    "name": name,
    "key": f"key-{name}",
    "network": "student",
    "model": "resnet8",
    "inputs": {"init": None, "teachers": ["key-teacher"] if name == "joint" else [], "reference": None},
    "methods": ["kd", "rkd"] if name == "joint" else [],
    "epochs": 2,
    "steps": 10,
    "seconds": 75.0,
    "forward_passes": {"student": 1280, "teachers": 1280 if name == "joint" else 0, "reference": 0},
    "metrics": {
      "last": last | metrics,
      "best_by_validation": validation and last | validation,
      "oracle": last | {"test/accuracy": accuracy + 0.01},
    },
  }


def write(tmp_path, *stages):
  result = {
    "data": "digits",
    "seed": 3,
    "stages": stages,
    "devices": {"count": 2, "kind": "cpu"},
    "versions": {"jax": "1", "flax": "2", "optax": "3", "smskd_jax": "4"},
    "git_revision": "abc",
  }
  (tmp_path / "result.json").write_text(json.dumps(result))
  for one in stages:
    folder = tmp_path / "store" / one["key"]
    folder.mkdir(parents=True)
    lines = [one["metrics"]["last"] | {"step": s, "epoch": s / 5} for s in (0, 5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  return run_report.write_summary(tmp_path, tmp_path / "store").read_text()


def row(text, name, table):
  rows = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
  return [cell.strip() for cell in rows[table].strip("|").split("|")]


def test_tables_and_figure(tmp_path):
  text = write(tmp_path, stage("alone", 0.8125), stage("joint", 0.9, **{"test/teacher_agreement": 0.955}))
  assert text.startswith("# digits, seed 3\n")
  assert row(text, "alone", 0) == [
    "alone",
    "student",
    "resnet8",
    "81.25 %",
    "100.00 %",
    "0.500",
    "0.020",
    "-",
    "82.25 %",
  ]
  assert row(text, "joint", 0)[-3:] == ["0.020", "95.50 %", "91.00 %"]
  assert row(text, "joint", 1) == [
    *("joint", "kd + rkd", "2", "10", "1,280", "1,280", "-", "1 min 15 s", "key-joint"),
  ]
  assert "smskd_jax 4 (abc)" in text
  assert (tmp_path / "figures" / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_best_by_validation_has_its_columns(tmp_path):
  best = {"epoch": 1.0, "test/accuracy": 0.7}
  text = write(tmp_path, stage("alone", 0.8, validation=best))
  assert row(text, "alone", 0)[-3:] == ["70.00 %", "1", "81.00 %"]


def test_extra_test_sets_are_averaged_over_severities(tmp_path):
  accuracies = {"cifar10.1": 0.5, "contrast:1": 0.8, "contrast:2": 0.7, "fog:3": 0.25}
  text = write(tmp_path, stage("alone", 0.8) | {"extra_tests": accuracies})
  assert row(text, "stage", 1) == ["stage", "cifar10.1", "contrast", "fog"]
  assert row(text, "alone", 1) == ["alone", "50.00 %", "75.00 %", "25.00 %"]
