"""Tests of whole runs from Python: what they leave, what they reuse, how they go on, and what they refuse."""

import json

import jax
import numpy as np
import pytest
import runs

from smskd_jax import experiment
from smskd_jax.config import method, network, stage
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import loop


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished")
  return workdir, experiment.run(runs.tiny(), workdir, cpu_devices=2)


def test_what_a_run_leaves(finished):
  workdir, result = finished
  assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))
  assert [s["name"] for s in result["stages"]] == ["teacher", "fitnet", "kd"]
  of_kd = result["stages"][2]
  assert of_kd["steps"] == 22 and of_kd["epochs"] == 2
  assert of_kd["forward_passes"] == {"learner": 22 * 128, "teachers": 22 * 128, "reference": 22 * 128}
  assert result["stages"][1]["forward_passes"]["reference"] == 0
  last = of_kd["metrics"]["last"]
  for name in ("accuracy", "top5", "nll", "ece", "teacher_agreement", "teacher_kl", "reference_agreement"):
    assert np.isfinite(last[f"test/{name}"])
  assert of_kd["metrics"]["best_by_validation"] is None
  folder = workdir / "store" / of_kd["key"]
  assert {path.name for path in folder.iterdir()} == {
    "stage.json",
    "metrics.jsonl",
    "final",
    "result.json",
    "lock",
  }
  assert (workdir / "figures" / "stages.png").stat().st_size > 10_000
  report = (workdir / "report.md").read_text()
  assert f"{100 * last['test/accuracy']:.2f} %" in report and of_kd["key"] in report
  assert {path.name for path in (workdir / "tensorboard").iterdir()} == {"teacher", "fitnet", "kd"}
  config = json.loads((workdir / "config.json").read_text())
  assert config["config"]["stages"][2]["reference"]["temperature"] == 4.0
  assert config["versions"]["jax"] == jax.__version__


def test_metrics_lines(finished):
  workdir, result = finished
  lines = read_metrics(workdir / "store" / result["stages"][2]["key"] / "metrics.jsonl")
  assert lines[0]["step"] == 0 and lines[0]["test/reference_agreement"] == 1.0
  assert lines[0]["test/accuracy"] == result["stages"][1]["metrics"]["last"]["test/accuracy"]
  train = [line for line in lines if "train/loss" in line]
  assert [line["step"] for line in train] == [3, 6, 9, 11, 12, 15, 18, 21, 22]
  for line in train:
    whole = line["train/task"] + line["train/distill/kd"] + line["train/reference"]
    np.testing.assert_allclose(line["train/loss"], whole, rtol=1e-5)
  assert [line["epoch"] for line in lines if "test/accuracy" in line] == [0, 1, 2]


def test_the_same_command_again_reads_everything(finished, monkeypatch):
  workdir, result = finished
  monkeypatch.setattr(loop, "run", lambda *args: pytest.fail("trained again"))
  again = experiment.run(runs.tiny(), workdir, cpu_devices=2)["stages"]
  assert json.dumps(again) == json.dumps(result["stages"])


def test_a_shared_store_gives_the_teacher_to_another_experiment(finished, tmp_path, monkeypatch):
  workdir, result = finished
  stages = runs.tiny().stages
  other = runs.tiny(stages=(stages[0], stage("student", name="alone", epochs=1, batch_size=128)))
  trained = []
  run = loop.run
  monkeypatch.setattr(loop, "run", lambda *args: (trained.append(1), run(*args))[1])
  others = experiment.run(other, tmp_path, store=workdir / "store", cpu_devices=2)
  assert others["stages"][0]["key"] == result["stages"][0]["key"]
  assert len(trained) == 1
  assert (tmp_path / "tensorboard" / "teacher").exists()


def test_keys_follow_what_a_stage_reads(finished, tmp_path):
  """Another weight in the second stage is another second and third stage, and the same teacher."""
  keys = [s["key"] for s in finished[1]["stages"]]
  from smskd_jax import config, data, plan

  dataset = data.load("digits")
  planned = lambda c: [p.key for p in plan.make_plans(config.resolve(c), dataset)]
  assert planned(runs.tiny()) == keys
  changed = runs.tiny()
  changed.stages[1].methods[0].weight = 2.0
  assert [a == b for a, b in zip(planned(changed), keys, strict=True)] == [True, False, False]
  changed = runs.tiny(seed=1)
  assert not set(planned(changed)) & set(keys)
  changed = runs.tiny(checkpoint={"every_steps": 9}, log_every_steps=7)
  assert planned(changed) == keys
  changed = runs.tiny()
  changed.stages[2].name = "another"
  assert planned(changed) == keys


class Crash(BaseException):
  """Not an Exception: nothing may catch it, as nothing catches a kill."""


def crash_after(monkeypatch, steps):
  """Ends the run, as a crash would, after so many steps from now."""
  left, add = [steps], loop.Window.add

  def crashing(self, metrics):
    left[0] -= 1
    if left[0] < 0:
      raise Crash
    add(self, metrics)

  monkeypatch.setattr(loop.Window, "add", crashing)


def test_a_crashed_run_goes_on_bit_for_bit(finished, tmp_path, monkeypatch):
  for steps in (2, 9, 13, 5, 14, 7):
    with monkeypatch.context() as patch, pytest.raises(Crash):
      crash_after(patch, steps)
      experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])
  for one in finished[1]["stages"]:
    path = f"store/{one['key']}/metrics.jsonl"
    assert (tmp_path / path).read_text() == (finished[0] / path).read_text()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path, monkeypatch, capsys):
  with monkeypatch.context() as patch, pytest.raises(Crash):
    crash_after(patch, 14)
    experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  folder = tmp_path / "store" / finished[1]["stages"][0]["key"] / "checkpoints"
  assert {path.name for path in folder.iterdir()} == {"8", "12"}
  largest = max(
    (path for path in (folder / "12").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
  )
  largest.write_bytes(largest.read_bytes()[:100])
  experiment.run(runs.tiny(), tmp_path, cpu_devices=2)
  told = capsys.readouterr().out
  assert "checkpoints/12 is damaged" in told and "goes on from step 8 of 22" in told
  assert runs.left_by(tmp_path) == runs.left_by(finished[0])


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(tmp_path):
  exploding = runs.tiny()
  exploding.stages[1].optimizer.learning_rate = 1e30
  with pytest.raises(
    UserError, match=r"stage 'fitnet', step \d+: .* is (nan|inf).*; there is no checkpoint yet"
  ):
    experiment.run(exploding, tmp_path, cpu_devices=2)
  assert not (tmp_path / "result.json").exists()


def test_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
  fetch, seen = loop.Window.fetch, []

  def poisoned(self, step):
    seen.append(step)
    if len(seen) > 3:
      self._pending[-1]["task"] = np.float32("nan")
    return fetch(self, step)

  monkeypatch.setattr(loop.Window, "fetch", poisoned)
  with pytest.raises(
    UserError, match=r"stage 'teacher', step 8: task is nan.*; the last checkpoint is of step 4"
  ):
    experiment.run(runs.tiny(), tmp_path, cpu_devices=2)


def test_best_by_validation_never_looks_at_the_test_set(tmp_path):
  held_out = runs.tiny(data={"source": "digits", "validation": 0.2})
  held_out.stages = held_out.stages[:1]
  held_out.stages[0].epochs = 3
  result = experiment.run(held_out, tmp_path, cpu_devices=2)["stages"][0]
  lines = read_metrics(tmp_path / "store" / result["key"] / "metrics.jsonl")
  evaluated = [line for line in lines if "validation/accuracy" in line and line["step"]]
  best = max(line["validation/accuracy"] for line in evaluated)
  chosen = result["metrics"]["best_by_validation"]
  assert chosen == next(line for line in evaluated if line["validation/accuracy"] == best)
  assert "best by validation" in (tmp_path / "report.md").read_text()


def test_final_variables_reproduce_the_reported_accuracy(finished):
  from smskd_jax import data
  from smskd_jax.data.augment import normalize
  from smskd_jax.models import MODELS

  workdir, result = finished
  digits = data.load("digits")
  variables = checkpoint.load_variables(workdir / "store" / result["stages"][2]["key"] / "final")
  image = normalize(digits.test.image, digits.mean, digits.std)
  logits = MODELS["resnet8"](num_classes=10, width=0.125).apply(variables, image).logits
  accuracy = np.mean(np.argmax(logits, -1) == digits.test.label)
  np.testing.assert_allclose(
    accuracy, result["stages"][2]["metrics"]["last"]["test/accuracy"], atol=1.5 / 359
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data": {"source": "digit"}}, "unknown 'digit'; did you mean 'digits'"),
    (
      {"networks": {"teacher": network("resnet8", num_classes=5), "student": network("resnet8")}},
      "5, but the data has 10",
    ),
    ({"stages": (stage("student", batch_size=5000),)}, "only 1438 training images"),
    ({"stages": (stage("student", batch_size=63),)}, "63 images do not divide over 2 devices; .*: 62 or 64"),
    (
      {
        "stages": (
          stage("teacher", batch_size=64),
          stage("student", batch_size=64, teachers=("teacher",), methods=(method("fitnet", student_tap=7),)),
        )
      },
      r"config.stages\[1\]: fitnet: tap 7 does not exist",
    ),
  ],
)
def test_mistakes_are_found_before_anything_is_written(fields, message, tmp_path):
  with pytest.raises(UserError, match=message):
    experiment.run(runs.tiny(**fields), tmp_path / "new", cpu_devices=2)
  assert not (tmp_path / "new").exists()


def test_another_config_does_not_touch_the_workdir(finished):
  workdir, _ = finished
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  with pytest.raises(UserError, match="belongs to another config: config.seed is 0 there and 1 here"):
    experiment.run(runs.tiny(seed=1), workdir, cpu_devices=2)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_dry_run_writes_nothing(tmp_path, capsys):
  experiment.run(runs.tiny(), tmp_path / "new", cpu_devices=2, dry_run=True)
  told = capsys.readouterr().out
  assert not (tmp_path / "new").exists()
  assert "digits: 1,438 train, 359 test images" in told and '"temperature": 4.0' in told
