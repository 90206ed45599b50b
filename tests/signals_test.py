"""Tests of signals to whole programs: one line, the right status and nothing lost, at any moment."""

import os
from pathlib import Path
import random
import signal
import subprocess
import time

import pytest

import runs
from smskd_jax.runtime.writer import read_metrics

STUDY = ("--config=tests/studies/small_study.py:200", "--cpu_devices=1", "--jobs=2")


@pytest.fixture(autouse=True)
def ctrl_c_is_not_ignored():
  """As it is in the background of a shell, which processes inherit."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def listens(pid):
  """True if a process catches SIGTERM: Python itself has started, and its program listens."""
  lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
  return bool(int(lines["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def stop(process, signum, *, after=0.0, again=None):
  """(exit status, lines of stderr, seconds that it took to end) of a process that gets a signal, or two."""
  while not listens(process.pid):
    time.sleep(0.005)
  time.sleep(after)
  process.send_signal(signum)
  began = time.monotonic()
  if again is not None:
    time.sleep(again)
    process.send_signal(signum)
  _, err = process.communicate(timeout=60)
  return process.returncode, err.splitlines(), time.monotonic() - began


def trains(workdir, lines=3):
  """Waits until a stage has written so many lines of metrics."""
  deadline = time.monotonic() + 120
  while not any(len(read_metrics(path)) >= lines for path in workdir.glob("store/*/metrics.jsonl")):
    assert time.monotonic() < deadline
    time.sleep(0.02)


def assert_quiet(status, lines, signum):
  assert status == 128 + signum, lines
  assert len(lines) == 1 and "the same command continues from" in lines[0], lines


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_it_imports(tmp_path, signum):
  process = runs.start(tmp_path / "run", *runs.SMOKE)
  status, lines, seconds = stop(process, signum, after=0.3)
  assert_quiet(status, lines, signum)
  assert seconds < 2 and not (tmp_path / "run").exists()


def test_the_second_ctrl_c_ends_at_once(tmp_path):
  process = runs.start(tmp_path, *runs.SMOKE)
  trains(tmp_path)
  status, lines, _ = stop(process, signal.SIGINT, again=0.005)
  assert_quiet(status, lines, signal.SIGINT)


def alive(command):
  """The processes whose command line holds a text."""
  found = subprocess.run(["pgrep", "-f", command], capture_output=True, text=True).stdout.split()
  return [int(pid) for pid in found if int(pid) != os.getpid()]


def study(workdir):
  """A study of two variants, each a process of its own, that has begun to train."""
  process = runs.start(workdir, *STUDY, module="study")
  deadline = time.monotonic() + 120
  while len(list(workdir.glob("*/seed*/log.txt"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  return process


def assert_all_end(workdir, seconds=5):
  deadline = time.monotonic() + seconds
  while alive(f"workdir={workdir}") and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not alive(f"workdir={workdir}")


@pytest.mark.slow
def test_the_processes_of_a_study_end_with_it_when_it_is_killed(tmp_path):
  process = study(tmp_path)
  time.sleep(1)
  assert len(alive(f"workdir={tmp_path}")) >= 3
  process.kill()
  process.communicate()
  assert_all_end(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_twenty_moments_of_a_run(tmp_path, signum):
  rng, told = random.Random(int(signum)), []
  flags = (*runs.SMOKE, "--compilation_cache=off")
  for i in range(20):
    after = rng.uniform(0, 3) if i % 2 else rng.uniform(2, 14)
    again = rng.uniform(0, 0.5) if i % 3 == 0 else None
    process = runs.start(tmp_path, *flags)
    status, lines, seconds = stop(process, signum, after=after, again=again)
    told.append((round(after, 2), again, status, len(lines), round(seconds, 2), lines[:1]))
    print(*told[-1])
    if status == 0:  # it had come to its end
      break
    assert_quiet(status, lines, signum)
    assert seconds < 15
  status, _, err = runs.main(tmp_path, *flags)
  assert status == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_five_moments_of_a_study(tmp_path, signum):
  rng = random.Random(int(signum))
  for _ in range(5):
    process = runs.start(tmp_path, *STUDY, module="study")
    after = rng.uniform(0, 16)
    status, lines, seconds = stop(process, signum, after=after)
    print(round(after, 2), status, round(seconds, 2), lines)
    if status == 0:
      break
    assert_quiet(status, lines, signum)
    assert_all_end(tmp_path, 0.5)
