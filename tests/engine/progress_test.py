"""Tests of engine/progress.py and runtime/console.py: lines of a training run in logs and in terminals."""

import io
import re
import types

import pytest

import runs
from smskd_jax.config import resolve
from smskd_jax.data import load
from smskd_jax.engine import experiment, summary
from smskd_jax.engine import progress as progress_lib
from smskd_jax.engine.plan import make_plans
from smskd_jax.engine.progress import StageProgress, evaluation_line
from smskd_jax.runtime import clock, console, distributed
from smskd_jax.runtime.writer import read_metrics


class Time:
  """A clock that the test moves."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def time(monkeypatch):
  return Time(monkeypatch)


@pytest.fixture(scope="module")
def digits():
  return load("digits")


@pytest.fixture(scope="module")
def plans(digits):
  return make_plans(resolve(runs.tiny()), digits)


def test_a_log_has_a_line_for_each_evaluation_with_the_numbers_of_metrics_jsonl(tmp_path, capfd):
  config = runs.tiny()
  config.stages = config.stages[:2]
  result = experiment.run(config, tmp_path, cpu_devices=2)
  out, err = capfd.readouterr()
  assert "\r" not in out + err
  for one, epochs in zip(result["stages"], (2, 1), strict=True):
    written = read_metrics(tmp_path / "store" / one["key"] / "metrics.jsonl")
    lines = [line for line in out.splitlines() if line.startswith(f"{one['name']}  ")]
    assert lines.pop(1) == f"{one['name']}  compiling"
    tested = [line for line in written if "test/accuracy" in line]
    assert len(lines) == len(tested) == 1 + epochs
    for line, test in zip(lines, tested, strict=True):
      train = next((w for w in written if w["step"] == test["step"] and "train/loss" in w), {})
      assert line.startswith(evaluation_line(one["name"], epochs, train | test))
      assert (f"loss {train['train/loss']:#.4g}" if train else "epoch 0") in line
    assert all(" images/s" in line for line in lines[1:])
  assert out.count("estimated time left: ") == 1 and out.count("# digits, seed 0") == 1
  assert re.search(r"^total time: \d+ s; report: .*report.md$", out, re.MULTILINE)


def test_a_line_is_short_and_says_the_epoch_of_all():
  metrics = {"epoch": 3.0, "train/loss": 1.2341, "train/accuracy": 0.4512, "test/accuracy": 0.432}
  expected = "kd  epoch  3/10  loss 1.234  train 45.1 %  test 43.2 %  1,234 images/s  0:12 left"
  assert evaluation_line("kd", 10, metrics, 1234.3, 12.2) == expected
  validated = {"epoch": 0.0, "validation/accuracy": 0.1, "test/accuracy": 0.2}
  assert evaluation_line("kd", 1, validated) == "kd  epoch 0/1  validation 10.0 %  test 20.0 %"
  assert [console.format_clock(s) for s in (0.4, 59.6, 3730)] == ["0:00", "1:00", "1:02:10"]


def train_an_epoch(time, plan, timer, progress, *, seconds, compiling=0.0, evaluating, first=0):
  """The calls that the loop makes for 11 steps, of which the first compiles where `compiling` says so."""
  with timer.phase(clock.TRAIN):
    for step in range(first + 1, first + 12):
      compiled = bool(compiling) and step == 1
      if compiled:
        progress.compiling()
        with timer.phase(clock.COMPILE):
          time.now += compiling
      else:
        time.now += seconds
      progress.trained(step, 1, compiled=compiled)
    with timer.phase(clock.EVALUATE):
      time.now += evaluating
    progress.evaluated(step, [{"epoch": step / 11, "test/accuracy": x} for x in (0.25, 0.75)])


def test_rates_and_times_left_leave_compilation_out_and_count_evaluations(
  time, plans, digits, tmp_path, capsys
):
  timer, plan = clock.Clock(), plans[0]
  estimate = summary.RunEstimate(plans, digits, tmp_path, seeds=2)
  progress = StageProgress(plan, 2, timer, estimate, overhead=7.0)
  train_an_epoch(time, plan, timer, progress, seconds=0.5, compiling=100.0, evaluating=4.0)
  # 11 steps of 0.5 s and an evaluation of 4 s are left of the stage; 2 x 128 images in 0.5 s.
  step, evaluation = summary.step_flops(plan, digits) / 0.5, summary.evaluation_flops(plan, digits) / 4
  rest = [summary.stage_work(one, digits) for one in plans[1:]]
  seconds = 9.5 + sum(work.train / step + work.evaluate / evaluation + 107 for work in rest)
  expected = [
    "teacher (mean of 2 seeds)  compiling",
    "teacher (mean of 2 seeds)  epoch 1/2  test 50.0 %  512 images/s  0:10 left",
    f"estimated time left: {console.format_duration(9.5)} for stage teacher, "
    f"{console.format_duration(seconds)} for the run",
  ]
  assert capsys.readouterr().out.splitlines() == expected
  assert seconds > 2 * 107, "the next stages compile, too"
  train_an_epoch(time, plan, timer, progress, seconds=0.25, evaluating=4.0, first=11)
  again = "teacher (mean of 2 seeds)  epoch 2/2  test 50.0 %  1,024 images/s"
  assert capsys.readouterr().out.splitlines() == [again]
  assert timer.seconds() == {"train": 10 * 0.5 + 11 * 0.25, "compile": 100.0, "evaluate": 8.0}


def test_an_estimate_does_not_wait_for_the_end_of_a_long_epoch(time, plans, digits, tmp_path, capsys):
  timer = clock.Clock()
  progress = StageProgress(plans[0], 1, timer, summary.RunEstimate(plans, digits, tmp_path))
  with timer.phase(clock.TRAIN):
    for step in range(1, 9):
      time.now += 20.0
      progress.trained(step, 1, compiled=step == 1)
  assert progress_lib.ESTIMATE_SECONDS == 60
  out = capsys.readouterr().out
  assert out.count("estimated time left: ") == 1 and "for stage teacher" in out


def test_the_lead_alone_prints(time, plans, digits, tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(distributed, "is_primary", lambda: False)
  monkeypatch.setattr(console.sys, "stderr", Terminal())
  timer = clock.Clock()
  progress = StageProgress(plans[0], 2, timer, summary.RunEstimate(plans, digits, tmp_path))
  train_an_epoch(time, plans[0], timer, progress, seconds=0.5, compiling=1.0, evaluating=1.0)
  assert capfd.readouterr() == ("", "") and console.sys.stderr.getvalue() == ""


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_has_a_bar_of_the_epoch_and_the_same_lines(
  time, plans, digits, tmp_path, monkeypatch, capsys
):
  out, terminal, timer = io.StringIO(), Terminal(), clock.Clock()
  monkeypatch.setattr(console.sys, "stdout", out)
  monkeypatch.setattr(console.sys, "stderr", terminal)
  progress = StageProgress(plans[0], 2, timer, summary.RunEstimate(plans, digits, tmp_path))
  for first in (0, 11):
    compiling = 0.0 if first else 1.0
    train_an_epoch(
      time, plans[0], timer, progress, seconds=0.5, compiling=compiling, evaluating=1.0, first=first
    )
  progress.close()
  lines = out.getvalue().splitlines()
  assert [line.split("  ")[1] for line in lines if line.startswith("teacher")] == [
    "compiling",
    "epoch 1/2",
    "epoch 2/2",
  ]
  assert "\r" not in out.getvalue()
  bar = terminal.getvalue()
  assert "epoch 1/2:" in bar and "epoch 2/2:" in bar and "2.82k" in bar  # of 11 x 128 x 2 images


def test_a_log_hears_of_progress_after_a_silent_minute(monkeypatch, capsys):
  now = [1000.0]
  monkeypatch.setattr(console, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  console.log("kd  compiling")
  bar = console.ProgressBar("kd  epoch 1/2", 200)
  for _ in range(10):
    now[0] += 25.0
    bar.update(10)
  told = ["kd  compiling", "kd  epoch 1/2  15%", "kd  epoch 1/2  30%", "kd  epoch 1/2  45%"]
  assert capsys.readouterr().out.splitlines() == told


def test_phases_within_phases_are_counted_once(time):
  timer = clock.Clock()
  time.now += 5
  with timer.phase("train"):
    time.now += 1
    with timer.phase("save"):
      time.now += 2
    assert timer.seconds_in("train") == 1
    time.now += 3
  time.now += 5
  assert timer.seconds() == {"train": 4, "save": 2}
  assert clock.add_seconds({"train": 1.0}, {"save": 2.0, "train": 3.0}) == {"train": 4.0, "save": 2.0}
