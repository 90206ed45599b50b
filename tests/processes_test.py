"""Tests of runs of several processes: results of a single process, one writer, and a common end."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import process_steps
import runs
import smoke
from smskd_jax.engine import experiment
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, distributed
from smskd_jax.runtime.writer import read_metrics

# The last two stages read cached teacher outputs.
CONFIG = (
  f"--config={runs.ROOT / 'tests' / 'smoke.py'}",
  "--config.stages[2].teacher_cache=float32",
  "--config.stages[3].teacher_cache=float32",
)


def start(workdir, *flags, count=2, of_each=()):
  """The main program in several processes of two devices each."""
  flags = (*CONFIG, "--cpu_devices=2", *flags)
  own = of_each or ((),) * count
  return [
    runs.start(workdir, *flags, f"--distributed={how}", *own[index])
    for index, how in enumerate(runs.join(count))
  ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """Workdirs of a run of one process (this one) and of two processes, with four devices each."""
  folder = tmp_path_factory.mktemp("processes")
  processes = start(folder / "two")
  config = smoke.get_config()
  for stage in config.stages[2:]:
    stage.teacher_cache = "float32"
  experiment.run(config, folder / "one", cpu_devices=4)
  return folder, runs.end(processes)


def result(workdir):
  return json.loads((workdir / "result.json").read_text())


def lines(workdir, name):
  (key,) = (one["key"] for one in result(workdir)["stages"] if one["name"] == name)
  return read_metrics(workdir / "store" / key / "metrics.jsonl")


def digests(workdir):
  finals = [workdir / "store" / one["key"] / "final" for one in result(workdir)["stages"]]
  return [checkpoint.tree_digest(checkpoint.load_variables(path)) for path in finals]


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(finished):
  folder, ends = finished
  assert [status for status, _, _ in ends] == [0, 0], ends
  one, two = (result(folder / name) for name in ("one", "two"))
  assert two["devices"] == {"kind": "cpu", "count": 4, "processes": 2}
  for ours, theirs in zip(two["stages"], one["stages"], strict=True):
    assert (ours["name"], ours["key"]) == (theirs["name"], theirs["key"])
    found, expected = (lines(folder / name, ours["name"]) for name in ("two", "one"))
    assert [set(line) for line in found] == [set(line) for line in expected]
    for a, b in zip(found, expected, strict=True):
      if "train/loss" in a:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)


@pytest.mark.slow
def test_only_process_0_logs_and_writes(finished):
  folder, ((_, primary, _), (_, other, _)) = finished
  unexpected = [line for line in other.splitlines() if "[Gloo]" not in line and "peer ranks" not in line]
  assert "report.md" in primary and "test accuracy" in primary and not unexpected
  assert {path.name for path in (folder / "two").iterdir()} == {
    path.name for path in (folder / "one").iterdir()
  }
  assert len(list((folder / "two" / "tensorboard").rglob("events*"))) == len(result(folder / "two")["stages"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_losses_of_three_stages_are_those_of_one_process(float64, count):
  path = os.pathsep.join((str(runs.ROOT / "tests"), str(runs.ROOT)))
  environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
  command = [sys.executable, str(runs.ROOT / "tests" / "process_steps.py")]
  started = [
    subprocess.Popen(
      [*command, how, "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    for how in runs.join(count)
  ]
  expected = process_steps.losses(jax.devices()[: 2 * count])
  for status, out, err in runs.end(started):
    assert status == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["devices"] == 2 * count
    for name, of_method in expected.items():
      np.testing.assert_allclose(found["losses"][name], of_method, rtol=1e-9, err_msg=name)


def start_and_wait(workdir):
  """Starts two processes, and waits for their first checkpoint."""

  def saved():
    return {path for path in workdir.glob("store/*/checkpoints/[0-9]*") if path.name.isdigit()}

  before, started, until = saved(), start(workdir), time.monotonic() + 120
  while time.monotonic() < until:
    if saved() - before:
      return started
    assert all(process.poll() is None for process in started), runs.end(started)
    time.sleep(0.05)
  pytest.fail("no checkpoint")


def sigterm(workdir, who):
  """Sends SIGTERM to one of two processes; both stop at the same step."""
  started = start_and_wait(workdir)
  started[who].send_signal(signal.SIGTERM)
  ends = runs.end(started, timeout=90)
  assert [status for status, _, _ in ends] == [143, 143], ends
  assert "the same command continues from there" in ends[0][2] and not (workdir / "result.json").exists()


def kill(workdir, who):
  """Kills one of two processes; the other ends with an error. Returns the output of process 0."""
  started = start_and_wait(workdir)
  started[who].kill()
  began = time.monotonic()
  ends = runs.end(started, timeout=90)
  assert time.monotonic() - began < 60
  status, _, err = ends[1 - who]
  assert status not in (0, None) and err.strip(), ends
  assert not (workdir / "result.json").exists()
  return ends[0][1]


@pytest.mark.slow
def test_stopped_killed_and_ended_by_one_process_it_is_the_same_run(finished, tmp_path):
  sigterm(tmp_path, who=1)
  assert "continues from step" in kill(tmp_path, who=1)
  status, out, err = runs.main(tmp_path, *CONFIG, "--cpu_devices=4")
  assert status == 0 and "continues from step" in out, err
  for ours, theirs in zip(result(tmp_path)["stages"], result(finished[0] / "two")["stages"], strict=True):
    nll = [of["metrics"]["last"]["test/nll"] for of in (ours, theirs)]
    assert nll[0] == pytest.approx(nll[1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("ends", "who"), [(sigterm, 1), (kill, 0)])
def test_as_many_processes_go_on_bit_for_bit(finished, tmp_path, ends, who):
  ends(tmp_path, who)
  again = runs.end(start(tmp_path))
  assert [status for status, _, _ in again] == [0, 0], again
  assert digests(tmp_path) == digests(finished[0] / "two")


def test_a_process_with_another_config_is_refused_and_named(tmp_path):
  ends = runs.end(start(tmp_path / "new", of_each=((), ("--config.log_every_steps=7",))), timeout=90)
  assert all(status for status, _, _ in ends)
  assert any("process 1 is not like process 0: config.log_every_steps is" in err for _, _, err in ends), ends
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  "how", ["sometimes", "localhost,2,0", "localhost:1234,2,2", "localhost:1234,2", "localhost:0,2,1"]
)
def test_invalid_modes_are_refused(how):
  with pytest.raises(
    UserError, match="--distributed: .* is none of 'off', 'auto' and HOST:PORT,PROCESSES,PROCESS"
  ):
    distributed.initialize(how)


def test_collectives_of_a_single_process():
  assert (
    distributed.all_gather_json({"a": 1}) == [{"a": 1}]
    and distributed.broadcast(7) == 7
    and distributed.is_primary()
  )
  distributed.barrier()


@pytest.mark.slow
def test_the_launcher_runs_two_processes(finished, tmp_path):
  environment = os.environ | {"PYTHON": sys.executable, "PYTHONWARNINGS": "ignore"}
  environment["PYTHONPATH"] = os.pathsep.join((str(runs.ROOT / "tests"), str(runs.ROOT)))
  command = [runs.ROOT / "launch" / "local.sh", "2", f"--workdir={tmp_path}", "--cpu_devices=2", *CONFIG]
  done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, env=environment, timeout=300)
  assert done.returncode == 0, done.stderr
  assert digests(tmp_path) == digests(finished[0] / "two")
