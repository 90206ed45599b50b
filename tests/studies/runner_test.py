"""Tests of whole studies: shared stages, resuming, failures, parallel seeds, the report."""

import functools
import json

import pytest

import runs
from smskd_jax import data
from smskd_jax.config import experiment, method, network, stage
from smskd_jax.config.study_schema import resolve, study, with_changes
from smskd_jax.engine import experiment as experiment_lib
from smskd_jax.engine import stage_runner, summary
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint
from smskd_jax.studies import executors, runner, stage_graph
from tiny import SMALL

COMMON = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
NETWORKS = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}
SMALL_STUDY = ("--config=tests/studies/small_study.py:1", "--cpu_devices=1")
run = functools.partial(runner.run, cpu_devices=1)


def experiment_on_digits(*stages, **networks):
  return experiment(data={"source": "digits"}, networks=networks or NETWORKS, stages=stages)


def student_stage(term, **fields):
  return stage("student", teachers=("teacher",), methods=(method(term),), **COMMON, **fields)


def make_study(*names, seeds=(0, 1), **fields):
  """A study of the named variants, all by default."""
  anchored = experiment_on_digits(
    student_stage("kd", name="first"),
    student_stage("logits_mse", name="second", reference={"stage": "previous"}),
  )
  variants = {
    "anchored": anchored,
    "free": with_changes(anchored, {"stages[1].reference.stage": "none"}),
    "exploding": with_changes(anchored, {"stages[1].optimizer.learning_rate": 1e30}),
  }
  return study(
    seeds=seeds,
    teachers=experiment_on_digits(stage("teacher", epochs=2, **COMMON), teacher=NETWORKS["teacher"]),
    variants={name: variants[name] for name in names or variants},
    **fields,
  )


@pytest.fixture
def trained(monkeypatch):
  """(name, seed) of each stage that is trained."""
  return record_stages(monkeypatch)


def record_stages(monkeypatch):
  names = []
  run_together = stage_runner.StageRunner._run_together

  def recording(self, learners, stop):
    names.extend((one.plan.name, one.plan.description["seed"]) for one in learners)
    return run_together(self, learners, stop)

  monkeypatch.setattr(stage_runner.StageRunner, "_run_together", recording)
  return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study")
  with pytest.MonkeyPatch.context() as patch:
    names = record_stages(patch)
    failures = run(make_study(), workdir)
  return workdir, failures, names


def read_result(workdir, *folders):
  return json.loads(workdir.joinpath(*folders, "result.json").read_text())


def unit_titles(out):
  return [line for line in out.splitlines() if line.startswith("unit ")]


def final_digests(workdir, variant, seed):
  stages = read_result(workdir, variant, f"seed{seed}")["stages"]
  folders = {one["name"]: workdir / "store" / one["key"] / "final" for one in stages}
  return {name: checkpoint.tree_digest(checkpoint.load_variables(folder)) for name, folder in folders.items()}


def test_every_stage_is_trained_once(finished):
  _, _, names = finished
  stages = ("first", "second", "second", "second")
  assert sorted(names) == sorted([("teacher", 0)] + [(name, seed) for seed in (0, 1) for name in stages])


def test_a_failure_is_reported_and_does_not_stop_other_units(finished):
  workdir, failures, _ = finished
  assert set(failures) == {"exploding:0", "exploding:1"}
  assert all("learning rate" in error for error in failures.values())
  assert "failed: exploding:0: stage 'second', step" in (workdir / "report.md").read_text()


def test_the_report_has_accuracies_costs_and_comparisons(finished):
  workdir, _, _ = finished
  numbers = read_result(workdir)["variants"]
  assert set(numbers) == {"anchored", "free", "exploding"} and set(numbers["free"]) == {"0", "1"}
  last = read_result(workdir, "free", "seed1")["stages"][1]["metrics"]["last"]
  assert numbers["free"]["1"]["accuracy"] == pytest.approx(100 * last["test/accuracy"])
  images_per_stage = 11 * 128
  assert numbers["free"]["1"]["images"] == 2 * images_per_stage
  assert numbers["free"]["1"]["frozen"] == 2 * images_per_stage
  assert numbers["anchored"]["1"]["frozen"] == 3 * images_per_stage
  mean = sum(one["accuracy"] for one in numbers["anchored"].values()) / 2
  report = (workdir / "report.md").read_text()
  for part in (f"{mean:.2f} ±", "Compared with `anchored`", "undecided at 2 seeds"):
    assert part in report


def test_the_same_command_trains_failed_units_only_and_seeds_may_be_added(finished, trained, monkeypatch):
  workdir, failures, _ = finished
  with pytest.raises(UserError, match="belongs to another study"):
    run(make_study("anchored", "free"), workdir)
  assert run(make_study(), workdir) == failures
  assert {name for name, _ in trained} <= {"second"}
  trained.clear()
  monkeypatch.setattr(executors, "run_in_process", lambda *arguments: iter(()))
  run(make_study(seeds=(0, 1, 2)), workdir)
  assert trained == []


def test_a_study_from_before_variants_had_controls_can_be_resumed(tmp_path):
  resolved = resolve(make_study())
  older = {name: value for name, value in resolved.items() if name != "controls"}
  (tmp_path / "study.json").write_text(json.dumps({"study": older}))
  runner._check_workdir(tmp_path, resolved)
  with pytest.raises(UserError, match="belongs to another study: study.controls"):
    runner._check_workdir(tmp_path, resolve(make_study(controls={"free": "free"})))


def test_an_interrupted_study_resumes_with_the_same_networks(
  finished, tmp_path, trained, monkeypatch, capsys
):
  class Crash(BaseException):
    pass

  run_seeds, calls = experiment_lib.run_seeds, []

  def crash_in_second_unit(*arguments, **options):
    calls.append(arguments)
    if len(calls) == 2:
      raise Crash
    return run_seeds(*arguments, **options)

  config = make_study("anchored", "free", seeds=(0,))
  with monkeypatch.context() as patch, pytest.raises(Crash):
    patch.setattr(experiment_lib, "run_seeds", crash_in_second_unit)
    run(config, tmp_path)
  assert unit_titles(capsys.readouterr().out) == [
    "unit 1 of 2: anchored, seed 0",
    "unit 2 of 2: free, seed 0",
  ]
  trained.clear()
  run(config, tmp_path)
  out = capsys.readouterr().out
  assert unit_titles(out) == ["unit 2 of 2: free, seed 0"] and trained == [("second", 0)]
  assert out.count("Test accuracy in percent of `student`") == 1, "one report, of the study"
  assert "# digits, seed 0" not in out and "FLOPs/image" not in out, "no report of a unit"
  assert final_digests(tmp_path, "free", 0) == final_digests(finished[0], "free", 0)


@pytest.mark.slow
def test_parallel_seeds_are_the_same_study(finished, tmp_path, capsys):
  assert run(make_study("free"), tmp_path, cpu_devices=2, parallel_seeds=2) == {}
  out = capsys.readouterr().out
  assert unit_titles(out) == ["unit 1 of 1: free, seeds 0, 1"]
  assert "first (mean of 2 seeds)  epoch 1/1  loss" in out
  numbers, separate = (read_result(folder)["variants"]["free"] for folder in (tmp_path, finished[0]))
  assert set(numbers) == {"0", "1"}
  for seed, outcome in numbers.items():
    assert outcome["accuracy"] == pytest.approx(separate[seed]["accuracy"], abs=3)
    stages = read_result(tmp_path, "free", f"seed{seed}")["stages"]
    assert [one["num_parallel_seeds"] for one in stages] == [2, 2]


def test_the_teachers_are_a_unit_of_their_own(tmp_path, trained):
  assert runner.run_unit(make_study(), tmp_path, "teachers", cpu_devices=1) == {}
  assert trained == [("teacher", 0)] and (tmp_path / "teachers" / "result.json").exists()


def test_the_graph_of_several_orders_has_each_common_beginning_once(tmp_path):
  orders = [
    ("kd", "logits_mse", "hard_label"),
    ("kd", "hard_label", "logits_mse"),
    ("logits_mse", "kd", "hard_label"),
  ]
  variants = {"+".join(order): experiment_on_digits(*map(student_stage, order)) for order in orders}
  teachers = experiment_on_digits(stage("teacher", epochs=2, **COMMON), teacher=NETWORKS["teacher"])
  resolved = resolve(study(seeds=(0,), teachers=teachers, variants=variants))
  graph = stage_graph.build_graph(resolved, data.load, tmp_path, {})
  assert len(graph) == 1 + 2 + 3 + 3
  assert [len(node.used_by) for node in graph.values() if node.plan.name == "student_kd"] == [2, 1]
  text = stage_graph.describe(graph, resolved, summary.Speed(1e9, 1e9, 600.0))
  assert "9 stages to train once each, which the variants would call for 12 times; 0 are in the store" in text
  assert "the others, one after another: estimated time: 1 h 30 min" in text, (
    "10 minutes for each of 9 stages"
  )
  assert summary.UNKNOWN in stage_graph.describe(graph, resolved, None)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--parallel_seeds=2",)])
def test_a_study_runs_in_several_subprocesses(tmp_path, flags):
  status, _, err = runs.program("study", tmp_path, *SMALL_STUDY, "--jobs=2", *flags)
  assert status == 0, err
  numbers = read_result(tmp_path)["variants"]
  assert set(numbers) == {"warm", "hot"} and all(set(seeds) == {"0", "1"} for seeds in numbers.values())


@pytest.mark.slow
def test_units_run_concurrently_on_one_store_and_the_study_adds_the_report(tmp_path):
  started = [runs.start(tmp_path, *SMALL_STUDY, f"--unit={i}", module="study") for i in (0, 1)]
  for process in started:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  status, out, err = runs.program("study", tmp_path, *SMALL_STUDY)
  assert status == 0, err
  assert "read from the store" in out and "report:" in out
  assert all(set(seeds) == {"0", "1"} for seeds in read_result(tmp_path)["variants"].values())
