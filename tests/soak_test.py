"""A small run for minutes, killed and stopped in a loop amid checkpoints and evaluations: it ends as any other.

SMSKD_SOAK_MINUTES says for how long; half a minute by default.
"""

import contextlib
import os
import random
import signal
import subprocess
import time

import pytest

import runs

# Some thousand steps, a checkpoint every third of them.
FLAGS = (
  *runs.SMOKE,
  "--config.checkpoint.every_steps=3",
  "--config.stages[0].epochs={epochs}",
  "--config.stages[1].epochs={epochs}",
)


def used(pid):
  """The open handles and threads of a process that still runs."""
  with contextlib.suppress(OSError):
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
  return 0, 0


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_for_minutes_ends_as_one_that_was_not(tmp_path):
  minutes = float(os.environ.get("SMSKD_SOAK_MINUTES", "0.5"))
  flags = [flag.format(epochs=round(20 * minutes)) for flag in FLAGS]
  rng, deadline, most, ends = random.Random(0), time.monotonic() + 60 * minutes, (0, 0), {}
  while time.monotonic() < deadline:
    process = runs.start(tmp_path / "disturbed", *flags)
    until = time.monotonic() + rng.uniform(2, 25)
    while time.monotonic() < until and process.poll() is None:
      most = tuple(map(max, most, used(process.pid)))
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
    _, err = process.communicate(timeout=120)
    ends[process.returncode] = ends.get(process.returncode, 0) + 1
    assert process.returncode in (0, 130, 143, -signal.SIGKILL), err
    assert process.returncode == 0 or len(err.splitlines()) == (process.returncode > 0), err
    if process.returncode == 0:
      break
  for folder in ("disturbed", "undisturbed"):
    process = runs.start(tmp_path / folder, *flags)
    while process.poll() is None:
      most = tuple(map(max, most, used(process.pid)))
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)
    assert process.returncode == 0
  print(f"{minutes:g} minutes: ends by status {ends}; at most {most[0]} handles and {most[1]} threads")
  assert most[0] < 150
  assert runs.left_by(tmp_path / "disturbed") == runs.left_by(tmp_path / "undisturbed")
