"""Tests of whole studies: every stage once, going on, failures apart, several at once, the table."""

import json

import pytest

import runs
from smskd_jax.config.schema import experiment, method, network, stage
from smskd_jax.config.study_schema import resolve, study, with_changes
from smskd_jax.engine import estimates, stage_runner
from smskd_jax.engine import experiment as experiment_lib
from smskd_jax.errors import UserError
from smskd_jax.studies import runner, stage_graph, units
from tiny import SMALL

COMMON = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
NETWORKS = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}


def teachers():
  own = {"teacher": NETWORKS["teacher"]}
  return experiment(data={"source": "digits"}, networks=own, stages=(stage("teacher", epochs=2, **COMMON),))


def base():
  taught = {"teachers": ("teacher",), **COMMON}
  return experiment(
    data={"source": "digits"},
    networks=NETWORKS,
    stages=(
      stage("student", name="first", methods=(method("kd"),), **taught),
      stage(
        "student", name="second", methods=(method("logits_mse"),), reference={"stage": "previous"}, **taught
      ),
    ),
  )


def variants():
  return {
    "anchored": base(),
    "free": with_changes(base(), {"stages[1].reference.stage": "none"}),
    "exploding": with_changes(base(), {"stages[1].optimizer.learning_rate": 1e30}),
  }


def make(**fields):
  return study(**{"seeds": (0, 1), "teachers": teachers(), "variants": variants()} | fields)


class Trained:
  """Counts the stages that are trained, by their name."""

  def __init__(self, monkeypatch):
    self.names = []
    whole = stage_runner.StageRunner._run_together

    def counting(own, learners, stop):
      self.names += [(of.plan.name, of.plan.description["seed"]) for of in learners]
      return whole(own, learners, stop)

    monkeypatch.setattr(stage_runner.StageRunner, "_run_together", counting)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("study")
  with pytest.MonkeyPatch.context() as patch:
    trained = Trained(patch)
    failures = runner.run(make(), workdir, cpu_devices=2)
  return workdir, failures, trained.names


def test_every_stage_is_trained_once(finished):
  _, _, names = finished
  assert sorted(names) == sorted(
    [("teacher", 0)] + [(name, seed) for seed in (0, 1) for name in ("first", "second", "second", "second")]
  )


def test_a_failure_is_told_and_stops_no_other(finished):
  workdir, failures, _ = finished
  assert set(failures) == {"exploding:0", "exploding:1"}
  assert all("learning rate" in error for error in failures.values())
  report = (workdir / "report.md").read_text()
  assert "failed: exploding:0: stage 'second', step" in report


def test_the_table_and_the_claims(finished):
  workdir, _, _ = finished
  numbers = json.loads((workdir / "result.json").read_text())["variants"]
  assert set(numbers) == {"anchored", "free", "exploding"} and set(numbers["free"]) == {"0", "1"}
  result = json.loads((workdir / "free" / "seed1" / "result.json").read_text())
  last = result["stages"][1]["metrics"]["last"]
  assert numbers["free"]["1"]["accuracy"] == pytest.approx(100 * last["test/accuracy"])
  assert numbers["free"]["1"]["images"] == 2 * 11 * 128
  assert numbers["free"]["1"]["frozen"] == 2 * 11 * 128 and numbers["anchored"]["1"]["frozen"] == 3 * 11 * 128
  report = (workdir / "report.md").read_text()
  mean = sum(of["accuracy"] for of in numbers["anchored"].values()) / 2
  assert (
    f"{mean:.2f} ±" in report and "Compared with `anchored`" in report and "undecided at 2 seeds" in report
  )


def test_the_same_command_again_trains_nothing_and_seeds_may_be_added(finished, monkeypatch):
  workdir, failures, _ = finished
  trained = Trained(monkeypatch)
  only = {name: one for name, one in variants().items() if name != "exploding"}
  with pytest.raises(UserError, match="belongs to another study"):
    runner.run(make(variants=only), workdir, cpu_devices=2)
  assert runner.run(make(), workdir, cpu_devices=2) == failures
  assert {name for name, _ in trained.names} <= {"second"}  # those that failed are tried again
  trained.names.clear()
  with monkeypatch.context() as patch:
    patch.setattr(runner, "_run_in_process", lambda *arguments: iter(()))
    runner.run(make(seeds=(0, 1, 2)), workdir, cpu_devices=2)
  assert trained.names == []


def test_a_study_from_before_controls_goes_on(tmp_path):
  resolved = resolve(make())
  older = {name: value for name, value in resolved.items() if name != "controls"}
  (tmp_path / "study.json").write_text(json.dumps({"study": older}))
  runner._check_workdir(tmp_path, resolved)
  with pytest.raises(UserError, match="belongs to another study: study.controls"):
    runner._check_workdir(tmp_path, resolve(make(controls={"free": "free"})))


def test_a_study_that_was_stopped_goes_on(finished, tmp_path, monkeypatch, capsys):
  class Crash(BaseException):
    pass

  whole, count = experiment_lib.run_seeds, []

  def crashing(*arguments, **options):
    count.append(1)
    if len(count) == 2:
      raise Crash
    return whole(*arguments, **options)

  with monkeypatch.context() as patch, pytest.raises(Crash):
    patch.setattr(experiment_lib, "run_seeds", crashing)
    runner.run(make(seeds=(0,)), tmp_path, cpu_devices=2)
  assert units_in(capsys.readouterr().out) == ["unit 1 of 3: anchored, seed 0", "unit 2 of 3: free, seed 0"]
  trained = Trained(monkeypatch)
  runner.run(make(seeds=(0,)), tmp_path, cpu_devices=2)
  out = capsys.readouterr().out
  assert units_in(out) == ["unit 2 of 3: free, seed 0", "unit 3 of 3: exploding, seed 0"]
  assert out.count("Test accuracy in percent of `student`") == 1, "the table, once"
  assert "# digits, seed 0" not in out and "FLOPs/image" not in out, "no report of a unit"
  assert trained.names.count(("teacher", 0)) == 0 and trained.names.count(("first", 0)) == 0
  ours, theirs = (final_of(folder / "free" / "seed0", folder / "store") for folder in (tmp_path, finished[0]))
  assert ours == theirs


def units_in(out):
  return [line for line in out.splitlines() if line.startswith("unit ")]


def final_of(workdir, store):
  from smskd_jax.runtime import checkpoint

  stages = json.loads((workdir / "result.json").read_text())["stages"]
  return {
    one["name"]: checkpoint.tree_digest(checkpoint.load_variables(store / one["key"] / "final"))
    for one in stages
  }


def test_parallel_seeds_are_the_same_study(finished, tmp_path, capsys):
  two = {name: one for name, one in variants().items() if name != "anchored"}
  failures = runner.run(make(variants=two), tmp_path, cpu_devices=2, parallel_seeds=2)
  assert set(failures) == {"exploding:0", "exploding:1"}, "each is tried alone, to know which it is"
  out = capsys.readouterr().out
  assert (
    units_in(out)[0] == "unit 1 of 2: free, seeds 0, 1" and "first (mean of 2 seeds)  epoch 1/1  loss" in out
  )
  assert all("learning rate" in error for error in failures.values())
  numbers, others = (json.loads((f / "result.json").read_text())["variants"] for f in (tmp_path, finished[0]))
  assert set(numbers["free"]) == {"0", "1"}
  for seed, of in numbers["free"].items():
    assert of["accuracy"] == pytest.approx(others["free"][seed]["accuracy"], abs=3)
    result = json.loads((tmp_path / "free" / f"seed{seed}" / "result.json").read_text())
    assert [one["learners_at_once"] for one in result["stages"]] == [2, 2]


def test_the_teachers_alone_are_a_unit_too(tmp_path, monkeypatch):
  trained = Trained(monkeypatch)
  assert runner.run_unit(make(), tmp_path, "teachers", cpu_devices=2) == {}
  assert trained.names == [("teacher", 0)] and (tmp_path / "teachers" / "result.json").exists()
  alone = experiment(
    data={"source": "digits"}, networks={"student": NETWORKS["student"]}, stages=(stage("student", **COMMON),)
  )
  with pytest.raises(UserError, match="--unit: 'teachers' is no VARIANT:SEED of this study; it has: alone:0"):
    runner.run_unit(study(seeds=(0,), variants={"alone": alone}), tmp_path / "new", "teachers", cpu_devices=2)


def test_units_are_seeds_of_a_variant_and_what_is_finished_is_left_out():
  resolved = resolve(make(seeds=(0, 1, 2)))
  assert (
    str(units.find_unit(resolved, "4")) == "free:1"
    and str(units.find_unit(resolved, "free:2,0")) == "free:2,0"
  )
  assert [str(u) for u in units.study_units(resolved, 1)][:4] == [
    "anchored:0",
    "free:0",
    "exploding:0",
    "anchored:1",
  ]
  wanted = lambda unit: str(unit) not in ("free:1", "exploding:2")
  found = [str(unit) for unit in units.study_units(resolved, 2, wanted)]
  assert found == ["anchored:0,1", "free:0", "exploding:0,1", "anchored:2", "free:2"]


def test_the_tree_of_the_orders_has_each_beginning_once(tmp_path):
  from smskd_jax import data

  orders = [
    ("kd", "logits_mse", "hard_label"),
    ("kd", "hard_label", "logits_mse"),
    ("logits_mse", "kd", "hard_label"),
  ]
  taught = {"teachers": ("teacher",), **COMMON}
  made = {
    "+".join(order): experiment(
      data={"source": "digits"},
      networks=NETWORKS,
      stages=tuple(stage("student", methods=(method(name),), **taught) for name in order),
    )
    for order in orders
  }
  resolved = resolve(make(variants=made, seeds=(0,)))
  found = stage_graph.build_graph(resolved, data.load, tmp_path, {})
  assert len(found) == 1 + 2 + 3 + 3
  assert [len(node.used_by) for node in found.values() if node.plan.name == "student_kd"] == [2, 1]
  told = stage_graph.describe(found, resolved, estimates.Speed(1e9, 1e9, 600.0))
  assert "9 stages to train once each, which the variants would call for 12 times; 0 are in the store" in told
  assert "the others, one after another: estimated time: 1 h 30 min" in told, (
    "9 stages of 10 minutes beside steps"
  )
  assert estimates.UNKNOWN in stage_graph.describe(found, resolved, None)


def without_failures(tmp_path):
  """A file with the study's config, less the variant that fails."""
  config = tmp_path / "config/schema.py"
  config.write_text(
    "import sys\n"
    f"sys.path[:0] = [{str(runs.ROOT / 'tests')!r}, {str(runs.ROOT / 'tests' / 'studies')!r}]\n"
    "import execute_test\n\n\n"
    "def get_config():\n"
    "  only = {name: one for name, one in execute_test.variants().items() if name != 'exploding'}\n"
    "  return execute_test.make(seeds=(0, 1), variants=only)\n"
  )
  return f"--config={config}", "--cpu_devices=1"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--parallel_seeds=2",)])
def test_several_at_once_are_the_same(tmp_path, flags):
  status, _, err = runs.program("study", tmp_path / "jobs", *without_failures(tmp_path), "--jobs=2", *flags)
  assert status == 0, err
  numbers = json.loads((tmp_path / "jobs" / "result.json").read_text())["variants"]
  assert set(numbers) == {"anchored", "free"} and all(set(of) == {"0", "1"} for of in numbers.values())


@pytest.mark.slow
def test_units_run_at_once_on_one_store_and_the_study_adds_the_report(tmp_path):
  flags = without_failures(tmp_path)
  started = [runs.start(tmp_path / "study", *flags, f"--unit={i}", module="study") for i in (0, 1)]
  for process in started:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
  status, out, err = runs.program("study", tmp_path / "study", *flags)
  assert status == 0, err
  assert out.count("read from the store") >= 1
  numbers = json.loads((tmp_path / "study" / "result.json").read_text())["variants"]
  assert all(set(of) == {"0", "1"} for of in numbers.values())
  assert "report:" in out and (tmp_path / "study" / "report.md").is_file()


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (("--unit=free:7",), "--unit: 'free:7' is no VARIANT:SEED"),
    (("--unit=99",), "--unit: 99, but this study has "),
    (("--unit=free",), "--unit: 'free' is no VARIANT:SEED"),
    (("--jobs=0",), "--jobs"),
    (("--parallel_seeds=0",), "--parallel_seeds"),
  ],
)
def test_mistakes_of_the_command_line(flags, message, tmp_path):
  status, _, err = runs.program("study", tmp_path / "new", "--config=configs/studies/smoke.py", *flags)
  assert status == 2 and message in err and err.count("\n") == 1
  assert not (tmp_path / "new").exists()
