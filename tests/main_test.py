"""Tests of the command line: its help, its mistakes, and runs that are killed."""

import random
import signal
import subprocess
import sys
import time

import pytest

import runs
from smskd_jax.runtime.writer import read_metrics


def test_help_is_useful_and_does_not_wait_for_jax():
  without = (
    "import runpy, sys; sys.modules['jax'] = None; runpy.run_module('smskd_jax.main', run_name='__main__')"
  )
  done = subprocess.run(
    [sys.executable, "-c", without, "--help"], cwd=runs.ROOT, capture_output=True, text=True
  )
  status, out = done.returncode, done.stdout
  assert status == 0, done.stderr
  for word in (
    "configs/quickstart.py",
    "--workdir",
    "--store",
    "--dry_run",
    "--cpu_devices",
    "stages[1].epochs",
  ):
    assert word in out


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config=configs/smoke.py", "--config.stages[0].epoch=5"], "names no field of the config.*epoch"),
    (["--config=configs/smoke.py", "--config.stages[9].epochs=5"], "names no field of the config"),
    (["--config=configs/smoke.py", "--config.stages[0].epochs=x"], "invalid literal for int"),
    (
      ["--config=configs/smoke.py", "--config.stages[0].epochs=0"],
      r"config.stages\[0\].epochs: 0 is too small",
    ),
    (["--config=configs/smoke.py", "--config.data.source=digit"], "unknown 'digit'; did you mean 'digits'"),
    (
      ["--config=configs/smoke.py", "--cpu_devices=3"],
      "64 images do not divide over 3 devices; .*: 63 or 66",
    ),
    (["--config=configs/smoke.py", "--cpu_device=2"], "Unknown command line flag 'cpu_device'"),
    (["--config=configs/smoke.py", "stray"], "unexpected argument 'stray'"),
    (["--config=configs/none.py"], "there is no file configs/none.py"),
    (["--config=configs/smskd.py:teachr=resnet56"], "unknown 'teachr'; did you mean 'teacher'"),
    (["--config=configs/smskd.py:stages=fitnet+crrd"], "unknown 'crrd'"),
    (["--config=configs/smskd.py", "--config.data.folder=nowhere"], "nowhere"),
    ([], "--config: missing"),
  ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(flags, message, tmp_path):
  status, out, err = runs.main(tmp_path / "run", *flags)
  assert status == 2, out + err
  lines = err.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), err
  import re

  assert re.search(message, lines[0]), lines[0]
  assert not (tmp_path / "run").exists()


def test_dry_run_with_overrides(tmp_path):
  flags = "--config=configs/smskd.py:dataset=digits,teacher=resnet20,student=resnet8,stages=fitnet+rkd+kd"
  flags += ",protocol=equal,epochs=10"
  status, out, err = runs.main(tmp_path / "run", flags, "--config.stages[1].epochs=7", "--dry_run")
  assert status == 0, err
  assert '"epochs": 7' in out and "previous" in out
  rows = [line.split() for line in out.splitlines() if line[2:4] in ("1_", "2_", "3_")]
  assert [row[4] for row in rows] == ["7", "3", "3"]
  assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  status, _, err = runs.main(workdir, *runs.SMOKE)
  assert status == 0, err
  return runs.left_by(workdir)


def kill_and_go_on(workdir, kills, rng):
  """Kills the run so often, each time at a random moment, and then lets it finish."""
  for _ in range(kills):
    process = runs.start(workdir, *runs.SMOKE)
    try:
      process.communicate(timeout=rng.uniform(2, 8))
    except runs.subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
  status, _, err = runs.main(workdir, *runs.SMOKE)
  assert status == 0, err


def test_killed_runs_end_as_if_nothing_had_happened(uninterrupted, tmp_path):
  kill_and_go_on(tmp_path, 1, random.Random(0))
  assert runs.left_by(tmp_path) == uninterrupted


@pytest.mark.slow
def test_twenty_kills(uninterrupted, tmp_path):
  kill_and_go_on(tmp_path, 20, random.Random(1))
  assert runs.left_by(tmp_path) == uninterrupted


def test_sigterm_saves_first(uninterrupted, tmp_path):
  process = runs.start(tmp_path, *runs.SMOKE)
  deadline = time.monotonic() + 120
  trains = lambda: [p for p in tmp_path.glob("store/*/metrics.jsonl") if len(read_metrics(p)) > 2]
  while not trains() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 0
  assert "stopped at step" in err and "the same command goes on from there" in err
  assert any(tmp_path.glob("store/*/checkpoints/*"))
  status, out, err = runs.main(tmp_path, *runs.SMOKE)
  assert status == 0, err
  assert "goes on from step" in out
  assert runs.left_by(tmp_path) == uninterrupted
