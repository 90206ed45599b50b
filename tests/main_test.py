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


def test_a_mistake_ends_the_process_with_one_line(tmp_path):
  """Of this many refusals_test.py has."""
  status, out, err = runs.main(tmp_path / "run", "--config=configs/smoke.py", "--config.stages[0].epoch=5")
  assert (status, out) == (2, "") and not (tmp_path / "run").exists()
  assert err == (
    "error: --config.stages[0].epoch: config.stages[0] has no field 'epoch'; did you mean 'epochs'?\n"
  )


@pytest.mark.slow
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}])
def test_paths_may_have_any_letters(locale, tmp_path, monkeypatch):
  for name, value in locale.items():
    monkeypatch.setenv(name, value)
  config = tmp_path / "größe.py"
  config.write_text((runs.ROOT / "tests" / "smoke.py").read_text())
  status, _, err = runs.main(
    tmp_path / "é ü", f"--config={config}", "--cpu_devices=2", f"--store={tmp_path / 'ß'}"
  )
  assert status == 0, err
  done = subprocess.run(
    [sys.executable, "-m", "smskd_jax.report", str(tmp_path / "é ü")], cwd=runs.ROOT, capture_output=True
  )
  assert done.returncode == 0 and (tmp_path / "é ü" / "report.html").is_file()


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


@pytest.mark.slow
def test_killed_runs_end_as_if_nothing_had_happened(uninterrupted, tmp_path):
  kill_and_go_on(tmp_path, 1, random.Random(0))
  assert runs.left_by(tmp_path) == uninterrupted


@pytest.mark.slow
def test_six_kills(uninterrupted, tmp_path):
  kill_and_go_on(tmp_path, 6, random.Random(1))
  assert runs.left_by(tmp_path) == uninterrupted


@pytest.mark.slow
def test_sigterm_saves_first(uninterrupted, tmp_path):
  process = runs.start(tmp_path, *runs.SMOKE)
  deadline = time.monotonic() + 120

  def trains():
    return [p for p in tmp_path.glob("store/*/metrics.jsonl") if len(read_metrics(p)) > 2]

  while not trains() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM
  assert "stopped at step" in err and "the same command continues from there" in err
  assert any(tmp_path.glob("store/*/checkpoints/*"))
  status, out, err = runs.main(tmp_path, *runs.SMOKE)
  assert status == 0, err
  assert "continues from step" in out
  assert runs.left_by(tmp_path) == uninterrupted
