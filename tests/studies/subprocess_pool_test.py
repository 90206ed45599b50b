"""Tests of studies/subprocess_pool.py: simultaneous subprocesses, their errors, cores and signals."""

import os
import signal
import sys
import threading
import time

import pytest

from smskd_jax.runtime.signals import Interrupted
from smskd_jax.studies import subprocess_pool


def run(tmp_path, code, num_workers=2):
  """Runs pieces of Python by name; returns error messages by name."""

  def command(name):
    return [sys.executable, "-c", code[name]]

  def log_path(name):
    return tmp_path / name / "log.txt"

  return dict(subprocess_pool.run_pool(list(code), command, log_path, num_workers))


def test_the_error_message_is_the_last_line_of_the_log(tmp_path):
  found = run(
    tmp_path,
    {
      "fine": "print('done')",
      "bad": "import sys; print('before'); sys.exit('error: config.seed: -1 is too small')",
      "silent": "import os; os._exit(3)",
    },
  )
  assert found["fine"] is None
  assert found["bad"].startswith("config.seed: -1 is too small (exit status 1;")
  assert "no output (exit status 3;" in found["silent"]
  assert (tmp_path / "fine" / "log.txt").read_text() == "done\n"


def test_two_subprocesses_run_at_once(tmp_path):
  """Each waits for a file of the other."""
  meet = (
    "import pathlib, time\n"
    f"folder = pathlib.Path({str(tmp_path)!r})\n"
    "(folder / {own!r}).touch()\n"
    "deadline = time.time() + 60\n"
    "while not (folder / {other!r}).exists():\n"
    "  assert time.time() < deadline\n"
    "  time.sleep(0.02)\n"
  )
  code = {"a": meet.format(own="1", other="2"), "b": meet.format(own="2", other="1")}
  assert run(tmp_path, code) == {"a": None, "b": None}


def test_core_groups_are_disjoint_and_cover_all_cores():
  cores = os.sched_getaffinity(0)
  assert subprocess_pool.core_groups(1) == [cores]
  if len(cores) > 1:
    first, second = subprocess_pool.core_groups(2)
    assert first and second and not first & second and first | second <= cores
  assert all(group == cores for group in subprocess_pool.core_groups(2 * len(cores)))


def test_each_subprocess_is_bound_to_its_cores(tmp_path):
  cores = os.sched_getaffinity(0)
  code = dict.fromkeys("ab", "import os; print(sorted(os.sched_getaffinity(0)))")
  run(tmp_path, code)
  printed = {(tmp_path / name / "log.txt").read_text() for name in code}
  assert printed == {f"{sorted(group)}\n" for group in subprocess_pool.core_groups(2)}
  assert os.sched_getaffinity(0) == cores


def test_a_signal_is_forwarded_and_the_subprocess_waited_for(tmp_path):
  code = (
    "import pathlib, signal, sys, time\n"
    "def stop(*_):\n"
    f"  pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    "  sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
    "time.sleep(60)\n"
  )

  def interrupt():
    while not (tmp_path / "ready").exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=interrupt).start()
  with pytest.raises(Interrupted) as caught:
    run(tmp_path, {"long": code, "never": "raise SystemExit('started')"}, num_workers=1)
  assert caught.value.signum == signal.SIGTERM
  assert (tmp_path / "saved").exists() and not (tmp_path / "never").exists()
