"""Tests of studies/subprocess_pool.py: processes at once, what went wrong in them, and a polite end."""

import os
import signal
import sys
import threading
import time

import pytest

from smskd_jax.runtime.signals import Interrupted
from smskd_jax.studies import subprocess_pool


def run(tmp_path, codes, jobs=2):
  command_of = lambda name: [sys.executable, "-c", codes[name]]
  return dict(
    subprocess_pool.run_pool(list(codes), command_of, lambda name: tmp_path / name / "log.txt", jobs)
  )


def test_what_went_wrong_is_the_last_line(tmp_path):
  codes = {
    "fine": "print('done')",
    "bad": "import sys; print('before'); sys.exit('error: config.seed: -1 is too small')",
    "silent": "import os; os._exit(3)",
  }
  found = run(tmp_path, codes)
  assert found["fine"] is None
  assert found["bad"].startswith("config.seed: -1 is too small (exit status 1;")
  assert "it said nothing (exit status 3;" in found["silent"]
  assert (tmp_path / "fine" / "log.txt").read_text() == "done\n"


def test_so_many_run_at_once(tmp_path):
  """Two that wait for each other end only together."""
  meet = (
    "import pathlib, sys, time\n"
    f"here = pathlib.Path({str(tmp_path)!r})\n"
    "(here / sys.argv[1]).touch()\n"
    "deadline = time.time() + 60\n"
    "while not (here / sys.argv[2]).exists():\n"
    "  assert time.time() < deadline\n"
    "  time.sleep(0.02)\n"
  )
  others = {"a": "b", "b": "a"}
  command_of = lambda name: [sys.executable, "-c", meet, name, others[name]]
  found = dict(subprocess_pool.run_pool(list(others), command_of, lambda name: tmp_path / f"{name}.log", 2))
  assert found == {"a": None, "b": None}


def test_cores_are_dealt_out():
  cores = os.sched_getaffinity(0)
  assert subprocess_pool.core_groups(1) == [cores]
  if len(cores) > 1:
    one, other = subprocess_pool.core_groups(2)
    assert one and other and not one & other and one | other <= cores
  assert all(share == cores for share in subprocess_pool.core_groups(2 * len(cores)))


def test_each_has_its_own_cores(tmp_path):
  cores = os.sched_getaffinity(0)
  codes = dict.fromkeys("ab", "import os; print(sorted(os.sched_getaffinity(0)))")
  run(tmp_path, codes)
  told = {(tmp_path / name / "log.txt").read_text() for name in codes}
  assert told == {f"{sorted(share)}\n" for share in subprocess_pool.core_groups(2)}
  assert os.sched_getaffinity(0) == cores


def test_a_signal_is_passed_on_and_waited_for(tmp_path):
  code = (
    "import pathlib, signal, sys, time\n"
    "def stop(*_):\n"
    f"  pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    "  sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
    "time.sleep(60)\n"
  )

  def ask():
    while not (tmp_path / "ready").exists():
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=ask).start()
  with pytest.raises(Interrupted) as caught:
    run(tmp_path, {"long": code, "never": "raise SystemExit('started')"}, jobs=1)
  assert caught.value.signum == signal.SIGTERM
  assert (tmp_path / "saved").exists() and not (tmp_path / "never").exists()
