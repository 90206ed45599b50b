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

from smskd_jax.runtime import parent_death
from smskd_jax.studies import subprocess_pool

CORE_LOCK = "smskd_jax.core"  # with a number the name of the claim on one
_FINGERPRINT_CODE = (
  "import json, sys; from smskd_jax.runtime import workdir; print(workdir.unlike(json.loads(sys.argv[1])))"
)


class NodeSpec(NamedTuple):
  """What a node must have, and what it starts."""

  arguments: tuple[str, ...]  # of Python, for the study
  folder: str  # where it is started
  environment: tuple[tuple[str, str], ...]  # beside the node's own
  lock_files: tuple[
    tuple[str, str], ...
  ]  # a flag that names a folder, and a file there that the study has locked
  fingerprint: str  # of the study's code and libraries, as JSON
  cpus: int  # of a unit; 0: all
  gpus: int


class UnitTask(NamedTuple):
  """A unit, as a node sees it."""

  unit: str  # the value of --unit
  log: Path
  result_paths: tuple[Path, ...]  # the files that are there when it is finished
  title: str  # in the line that is printed when it ends


class UnitResult(NamedTuple):
  """How a unit has ended."""

  error: str | None
  seconds: float
  host: str


class UnitStopped(Exception):
  """A unit was stopped, but not by its study: it is to go on from its last checkpoint, here or elsewhere."""


def check_node(spec: NodeSpec) -> str:
  """Why units cannot run here, in words; '' where they can."""
  return _find_problem(spec)


@functools.cache  # a worker may run many units
def _find_problem(spec: NodeSpec) -> str:
  for flag, mark in spec.lock_files:
    folder = Path(mark).parent
    if not Path(mark).exists():
      return f"it does not see {flag} ({folder}); use a folder on a disk that all nodes share"
    if _can_lock(mark):
      return f"locks in {flag} ({folder}) do not reach it; mount its disk with locks (flock)"
  if not Path(spec.folder).is_dir():
    return f"it does not see {spec.folder}, where the study was started; start it where all nodes can"
  done = subprocess.run(
    [sys.executable, "-c", _FINGERPRINT_CODE, spec.fingerprint],
    cwd=spec.folder,
    env=os.environ | dict(spec.environment),
    capture_output=True,
    text=True,
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["?"])[-1]
    return f"smskd_jax cannot be imported there ({last}); install it on all nodes"
  difference = done.stdout.strip()
  return difference and f"it is not like the study's: {difference}; install the same on all nodes"


def run_unit(spec: NodeSpec, task: UnitTask) -> UnitResult:
  """Runs a unit to its end. Whatever ends this process ends that of the unit: no two train one stage.

  Raises:
    Stopped: the unit was stopped or killed, and nobody here had asked for it.
  """
  began, host = time.monotonic(), socket.gethostname()
  problem = check_node(spec)  # again: the node may have joined later
  if problem:
    return UnitResult(f"node {host}: {problem}", 0.0, host)
  command = parent_death.with_parent_death([sys.executable, *spec.arguments, f"--unit={task.unit}"])
  with contextlib.ExitStack() as claims:
    cores = _claim_cores(spec.cpus, claims)
    child = subprocess_pool.start_process(
      command, task.log, cores, folder=spec.folder, environment=dict(spec.environment)
    )
    claims.callback(_stop_process, child.process)
    while child.process.poll() is None:
      time.sleep(0.2)
  status = child.process.returncode
  stopped = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)
  if status in stopped or (status == 0 and not all(path.exists() for path in task.result_paths)):
    raise UnitStopped(f"stopped or killed on {host}; {task.log}")
  return UnitResult(subprocess_pool.error_message(child), time.monotonic() - began, host)


def _stop_process(process: subprocess.Popen) -> None:
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


def _claim_cores(count: int, locks: contextlib.ExitStack) -> set[int]:
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
      name.bind(f"\0{CORE_LOCK}.{core}")
    except OSError:  # another unit's
      name.close()
      continue
    locks.enter_context(name)
    claimed.add(core)
  return claimed if claimed and len(claimed) == count else set(every)
