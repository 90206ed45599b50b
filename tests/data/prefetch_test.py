"""Tests of data/prefetch.py."""

import functools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from smskd_jax.data.prefetch import prefetch
from smskd_jax.errors import UserError


def make_batch(bad, step):
  if step == bad:
    raise UserError(f"data.source: step {step} is bad; fix it")
  return np.array([step, os.getpid()])


def steps(arrays):
  return [int(array[0]) for array in arrays]


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_come_in_order(workers):
  made = list(prefetch(functools.partial(make_batch, -1), 3, 20, num_workers=workers))
  assert steps(made) == list(range(3, 20))
  makers = {int(array[1]) for array in made}
  assert len(makers) == 2 and os.getpid() not in makers if workers else makers == {os.getpid()}
  assert all(type(array) is np.ndarray for array in made)


def test_an_empty_range_yields_nothing():
  assert list(prefetch(functools.partial(make_batch, -1), 5, 5)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_user_error_is_raised_unchanged(workers):
  made = prefetch(functools.partial(make_batch, 4), 2, 9, num_workers=workers)
  assert steps([next(made), next(made)]) == [2, 3]
  with pytest.raises(UserError, match="^data.source: step 4 is bad; fix it$"):
    next(made)


def test_the_iterator_can_be_closed_early():
  made = prefetch(functools.partial(make_batch, -1), 0, 10**6, num_workers=1)
  assert steps([next(made)]) == [0]
  made.close()


STREAMS = """
import numpy as np
from smskd_jax.data import ahead
def of_step(step):
  return np.full((4,), step)
if __name__ == "__main__":
  print(next(ahead.ahead(of_step, 0, 10_000, workers=2)), flush=True)
  input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_workers_exit_silently_with_their_parent(tmp_path, signum):
  (tmp_path / "streams.py").write_text(STREAMS)
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
  process = subprocess.Popen(
    [sys.executable, tmp_path / "streams.py"], text=True, start_new_session=True, **pipes
  )
  process.stdout.readline()
  time.sleep(1)
  (os.kill if signum == signal.SIGKILL else os.killpg)(process.pid, signum)
  _, err = process.communicate(timeout=60)
  deadline = time.monotonic() + 10
  group = ["pgrep", "-g", str(process.pid)]
  while subprocess.run(group, capture_output=True).stdout and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not subprocess.run(group, capture_output=True).stdout
  assert "Process grain" not in err
