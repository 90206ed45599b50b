"""Tests of analysis/report.py. That a run writes one, and what of, is in experiment_test.py."""

import json

from smskd_jax.analysis import report


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
    "reads": {"start": None, "teachers": ["key-teacher"] if name == "joint" else [], "reference": None},
    "methods": ["kd", "rkd"] if name == "joint" else [],
    "epochs": 2,
    "steps": 10,
    "seconds": 75.0,
    "forward_passes": {"learner": 1280, "teachers": 1280 if name == "joint" else 0, "reference": 0},
    "metrics": {"last": last | metrics, "best_by_validation": validation and last | validation},
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
  return report.write(tmp_path, tmp_path / "store").read_text()


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
    "-",
  ]
  assert row(text, "joint", 0)[-2:] == ["95.50 %", "-"]
  assert row(text, "joint", 1) == [
    *("joint", "kd + rkd", "2", "10", "1,280", "1,280", "-", "1 min 15 s", "`key-joint`"),
  ]
  assert "smskd_jax 4 (abc)" in text
  assert (tmp_path / "figures" / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_best_by_validation_has_its_columns(tmp_path):
  best = {"epoch": 1.0, "test/accuracy": 0.7}
  text = write(tmp_path, stage("alone", 0.8, validation=best))
  assert row(text, "alone", 0)[-2:] == ["70.00 %", "1"]
