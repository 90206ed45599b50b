"""What a node of a cluster does for a study: it looks whether it can, and runs units in processes of their own."""

import contextlib
import fcntl
import functools
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from smskd_jax.runtime import tied
from smskd_jax.studies import children

CORE = "smskd_jax.core"  # with a number the name of the claim on one
_UNLIKE = (
  "import json, sys; from smskd_jax.runtime import workdir; print(workdir.unlike(json.loads(sys.argv[1])))"
)


class Asked(NamedTuple):
  """What a node must have, and what it starts."""

  arguments: tuple[str, ...]  # of Python, for the study
  folder: str  # where it is started
  environment: tuple[tuple[str, str], ...]  # beside the node's own
  marks: tuple[tuple[str, str], ...]  # a flag that names a folder, and a file there that the study has locked
  likeness: str  # of the study's code and libraries, as JSON
  cpus: int  # of a unit; 0: all
  gpus: int


class Task(NamedTuple):
  """A unit, as a node sees it."""

  only: str  # the value of --only
  log: Path
  leaves: tuple[Path, ...]  # the files that are there when it is finished
  title: str  # in the line that is printed when it ends


class End(NamedTuple):
  """How a unit has ended."""

  error: str | None
  seconds: float
  host: str


class Stopped(Exception):
  """A unit was stopped, but not by its study: it is to go on from its last checkpoint, here or elsewhere."""


def look(asked: Asked) -> str:
  """Why units cannot run here, in words; '' where they can."""
  return _problem(asked)


@functools.cache  # a worker may run many units
def _problem(asked: Asked) -> str:
  for flag, mark in asked.marks:
    folder = Path(mark).parent
    if not Path(mark).exists():
      return f"it does not see {flag} ({folder}); use a folder on a disk that all nodes share"
    if _can_lock(mark):
      return f"locks in {flag} ({folder}) do not reach it; mount its disk with locks (flock)"
  if not Path(asked.folder).is_dir():
    return f"it does not see {asked.folder}, where the study was started; start it where all nodes can"
  done = subprocess.run(
    [sys.executable, "-c", _UNLIKE, asked.likeness],
    cwd=asked.folder,
    env=os.environ | dict(asked.environment),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["?"])[-1]
    return f"smskd_jax cannot be imported there ({last}); install it on all nodes"
  difference = done.stdout.strip()
  return difference and f"it is not like the study's: {difference}; install the same on all nodes"


def attend(asked: Asked, task: Task) -> End:
  """Runs a unit to its end. Whatever ends this process ends that of the unit: no two train one stage.

  Raises:
    Stopped: the unit was stopped or killed, and nobody here had asked for it.
  """
  began, host = time.monotonic(), socket.gethostname()
  problem = look(asked)  # again: the node may have joined later
  if problem:
    return End(f"node {host}: {problem}", 0.0, host)
  command = tied.command([sys.executable, *asked.arguments, f"--only={task.only}"])
  with contextlib.ExitStack() as claims:
    cores = _claim(asked.cpus, claims)
    child = children.start(command, task.log, cores, folder=asked.folder, environment=dict(asked.environment))
    claims.callback(_stop, child.process)
    while child.process.poll() is None:
      time.sleep(0.2)
  status = child.process.returncode
  stopped = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)
  if status in stopped or (status == 0 and not all(path.exists() for path in task.leaves)):
    raise Stopped(f"stopped or killed on {host}; {task.log}")
  return End(children.error_of(child), time.monotonic() - began, host)


def _stop(process: subprocess.Popen) -> None:
  """Asks a process that still runs to stop, and waits: it saves its state."""
  if process.poll() is None:
    process.terminate()
    process.wait()


def _can_lock(path: str) -> bool:
  with open(path, "r+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    except OSError:  # there are no locks at all
      return True
  return True


def _claim(count: int, claims: contextlib.ExitStack) -> set[int]:
  """So many cores of this machine that no other unit has; all where there are none.

  Ray counts CPUs, and deals none out. The claim on a core is a name of a socket, which the kernel takes back from a
  process that is killed.
  """
  every, claimed = sorted(os.sched_getaffinity(0)), set[int]()
  for core in every:
    if len(claimed) == count:
      break
    name = socket.socket(socket.AF_UNIX)
    try:
      name.bind(f"\0{CORE}.{core}")
    except OSError:  # another unit's
      name.close()
      continue
    claims.enter_context(name)
    claimed.add(core)
  return claimed if claimed and len(claimed) == count else set(every)
