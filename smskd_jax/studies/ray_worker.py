"""Worker side of studies on a Ray cluster: checks of a node, and units in subprocesses.

Does not import Ray.
"""

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
from smskd_jax.studies.units import is_intact

CORE_LOCK = "smskd_jax.core"  # followed by the core's number: name of the socket that reserves the core
STOPPED_STATUSES = (-signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM)
_FINGERPRINT_CODE = (
  "import json, sys; from smskd_jax.runtime import workdir; "
  "print(workdir.fingerprint_mismatch(json.loads(sys.argv[1])))"
)


class NodeSpec(NamedTuple):
  """Requirements of a study on its nodes, and the command line of its units."""

  arguments: tuple[str, ...]  # of Python
  folder: str  # working directory
  environment: tuple[tuple[str, str], ...]  # variables in addition to those of the node
  lock_files: tuple[
    tuple[str, str], ...
  ]  # (flag that names a folder, file in the folder that the study has locked)
  fingerprint: str  # of the study's code and libraries, as JSON
  cpus: int  # cores of a unit; 0: all
  gpus: int


class UnitTask(NamedTuple):
  """A unit to run on a node."""

  unit: str  # value of --unit
  log_path: Path
  result_paths: tuple[Path, ...]  # written when the unit is finished
  title: str  # on the console


class UnitResult(NamedTuple):
  """Outcome of a unit that has ended."""

  error: str | None
  seconds: float
  host: str


class UnitStopped(Exception):
  """A unit was stopped, but not by its study: Ray runs it again, from its last checkpoint."""


def check_node(spec: NodeSpec) -> str:
  """Returns the reason why this node cannot run units; '' if it can."""
  return _find_problem(spec)


@functools.cache  # a worker process may run many units
def _find_problem(spec: NodeSpec) -> str:
  for flag, path in spec.lock_files:
    folder = Path(path).parent
    if not Path(path).exists():
      return f"{flag} ({folder}) does not exist there; use a folder on a disk that all nodes mount"
    if _can_lock(path):
      return f"locks in {flag} ({folder}) have no effect there; mount the disk with locks (flock)"
  if not Path(spec.folder).is_dir():
    return (
      f"{spec.folder}, where the study was started, does not exist there; start it in a folder of all nodes"
    )
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
  return difference and f"its software differs from the study's: {difference}; install the same on all nodes"


def run_unit(spec: NodeSpec, task: UnitTask) -> UnitResult:
  """Runs a unit in a subprocess, which ends with this process.

  So no two subprocesses train one stage.

  Raises:
    UnitStopped: the unit was stopped or killed, but not by this process.
  """
  start_time, host = time.monotonic(), socket.gethostname()
  problem = check_node(spec)  # again: the node may have joined after the study's first check
  if problem:
    return UnitResult(f"node {host}: {problem}", 0.0, host)
  command = parent_death.with_parent_death([sys.executable, *spec.arguments, f"--unit={task.unit}"])
  with contextlib.ExitStack() as locks:
    cores = _claim_cores(spec.cpus, locks)
    child = subprocess_pool.start_process(
      command, task.log_path, cores, folder=spec.folder, environment=dict(spec.environment)
    )
    locks.callback(_stop_process, child.process)
    while child.process.poll() is None:
      time.sleep(subprocess_pool.POLL_SECONDS)
  status = child.process.returncode
  is_finished = status != 0 or all(map(is_intact, task.result_paths))
  if status in STOPPED_STATUSES or not is_finished:
    raise UnitStopped(f"stopped or killed on {host}; {task.log_path}")
  return UnitResult(subprocess_pool.error_message(child), time.monotonic() - start_time, host)


def _stop_process(process: subprocess.Popen) -> None:
  """Sends SIGTERM to a running process and waits until it has saved its state."""
  if process.poll() is None:
    process.terminate()
    process.wait()


def _can_lock(path: str) -> bool:
  with open(path, "r+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return False
    except OSError:  # the disk has no locks
      return True
  return True


def _claim_cores(count: int, locks: contextlib.ExitStack) -> set[int]:
  """Reserves `count` cores of this machine until `locks` closes.

  Returns all cores if so many are not free.

  Ray counts CPUs and does not assign them. A core is reserved by the name of a socket, which the kernel releases when
  a process is killed.
  """
  cores, claimed = sorted(os.sched_getaffinity(0)), set[int]()
  for core in cores:
    if len(claimed) == count:
      break
    lock = socket.socket(socket.AF_UNIX)
    try:
      lock.bind(f"\0{CORE_LOCK}.{core}")
    except OSError:  # reserved by another unit
      lock.close()
      continue
    locks.enter_context(lock)
    claimed.add(core)
  return claimed if claimed and len(claimed) == count else set(cores)
