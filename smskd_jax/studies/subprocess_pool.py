"""Pool of subprocesses on this machine, each on cores of its own."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
import os
from pathlib import Path
import signal
import subprocess
import time
import types
from typing import NamedTuple, TypeVar

from smskd_jax.runtime import signals
from smskd_jax.runtime.console import format_duration, log

T = TypeVar("T", bound=Hashable)
POLL_SECONDS = 0.2


class RunningProcess(NamedTuple):
  """A subprocess with its cores, start time and log file."""

  process: subprocess.Popen
  cores: set[int]
  start_time: float  # of time.monotonic
  log_path: Path


def run_pool(
  jobs: Sequence[T],
  command: Callable[[T], Sequence[str]],
  log_path: Callable[[T], Path],
  num_workers: int,
  title: Callable[[T], str] = str,
) -> Iterator[tuple[T, str | None]]:
  """Runs one subprocess for each job.

  Yields (job, error message or None) in the order in which they end.

  On SIGTERM and Ctrl-C all subprocesses get SIGTERM, so that they save their state, and are waited for.

  Args:
    jobs: jobs in order of their start.
    command: function from a job to its command line.
    log_path: function from a job to the file to which its output is appended.
    num_workers: number of simultaneous subprocesses.
    title: function from a job to its title on the console.

  Raises:
    Interrupted: SIGTERM or Ctrl-C.
  """
  waiting, running = list(jobs), dict[T, RunningProcess]()
  free_cores, signaled = core_groups(num_workers), set[int]()
  with signals.handle_signals() as stop:
    try:
      while waiting or running:
        while waiting and free_cores and not stop:
          job = waiting.pop(0)
          running[job] = start_process(command(job), log_path(job), free_cores.pop(0))
        ended = [job for job, child in running.items() if child.process.poll() is not None]
        for job in ended:
          child = running.pop(job)
          free_cores.append(child.cores)
          log(f"{title(job)}: {format_duration(time.monotonic() - child.start_time)}")
          if not stop:
            yield job, error_message(child)
        if stop:
          if not running:
            raise signals.Interrupted(stop.signum, "stopped")
          _terminate(running.values(), signaled)
        if not ended:
          time.sleep(POLL_SECONDS)
    finally:
      _terminate(running.values(), signaled)


def core_groups(num_groups: int) -> list[set[int]]:
  """Splits the cores of this machine into disjoint groups.

  With fewer cores than groups, each group has all cores.
  """
  cores = sorted(os.sched_getaffinity(0))
  size = len(cores) // num_groups
  return [set(cores[i * size : (i + 1) * size]) or set(cores) for i in range(num_groups)]


def start_process(
  command: Sequence[str],
  log_path: Path,
  cores: set[int],
  *,
  folder: str | None = None,
  environment: Mapping[str, str] = types.MappingProxyType({}),
) -> RunningProcess:
  """Starts a subprocess.

  Args:
    command: command line.
    log_path: file to which its output is appended.
    cores: cores that it may use.
    folder: its working directory; None: that of this process.
    environment: variables in addition to those of this process.
  """
  log_path.parent.mkdir(parents=True, exist_ok=True)
  own_cores = os.sched_getaffinity(0)
  # The child inherits the affinity; code between fork and exec (preexec_fn) could deadlock JAX.
  os.sched_setaffinity(0, cores)
  try:
    with open(log_path, "a") as file:
      process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # the terminal sends Ctrl-C to the parent alone, which forwards it
        cwd=folder,
        # Unbuffered, so that the error is the last line of the log.
        env=os.environ | dict(environment) | {"PYTHONUNBUFFERED": "1"},
      )
  finally:
    os.sched_setaffinity(0, own_cores)
  return RunningProcess(process, cores, time.monotonic(), log_path)


def _terminate(children: Iterable[RunningProcess], signaled: set[int]) -> None:
  """Sends SIGTERM once to each running subprocess."""
  for child in children:
    if child.process.poll() is None and child.process.pid not in signaled:
      child.process.send_signal(signal.SIGTERM)
      signaled.add(child.process.pid)


def error_message(child: RunningProcess) -> str | None:
  """The last line of the log of a subprocess that failed, with its exit status.

  None after success.
  """
  if not child.process.returncode:
    return None
  lines = child.log_path.read_text().strip().splitlines()
  last = lines[-1].removeprefix("error: ") if lines else "no output"
  return f"{last} (exit status {child.process.returncode}; {child.log_path})"
