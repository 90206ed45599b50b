"""Runs of a study in processes of their own, so many at once, each on its share of the cores."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
import os
from pathlib import Path
import signal
import subprocess
import time
import types
from typing import NamedTuple, TypeVar

from smskd_jax.runtime import console, signals

T = TypeVar("T", bound=Hashable)


class RunningProcess(NamedTuple):
  """A process, and what it was given."""

  process: subprocess.Popen
  cores: set[int]
  start_time: float
  log: Path


def run_pool(
  units: Sequence[T],
  command_of: Callable[[T], Sequence[str]],
  log_of: Callable[[T], Path],
  jobs: int,
  title_of: Callable[[T], str] = str,
) -> Iterator[tuple[T, str | None]]:
  """Runs the command of every unit; yields each with what went wrong, as they end.

  Asked to stop, it asks the processes to stop, which save their state, and waits for them.

  Args:
    units: what is to be run.
    command_of: the command of a unit.
    log_of: where to append what it says.
    jobs: how many at once.
    title_of: a unit's name in the line that is printed when it ends.

  Raises:
    Interrupted: SIGTERM or Ctrl-C came.
  """
  waiting, running, free, told = list(units), dict[T, RunningProcess](), core_groups(jobs), set[int]()
  with signals.handle_signals() as stop:
    try:
      while waiting or running:
        while waiting and free and not stop:
          unit = waiting.pop(0)
          running[unit] = start_process(command_of(unit), log_of(unit), free.pop(0))
        ended = [unit for unit, child in running.items() if child.process.poll() is not None]
        for unit in ended:
          child = running.pop(unit)
          free.append(child.cores)
          console.log(f"{title_of(unit)}: {console.format_duration(time.monotonic() - child.start_time)}")
          if not stop:
            yield unit, error_message(child)
        if stop:
          if not running:
            raise signals.Interrupted(stop.signum, "stopped")
          _terminate(running.values(), told)
        if not ended:
          time.sleep(0.2)
    finally:
      _terminate(running.values(), told)


def core_groups(jobs: int) -> list[set[int]]:
  """The cores of this machine, dealt out; where there are fewer than jobs, all of them to each."""
  cores = sorted(os.sched_getaffinity(0))
  size = len(cores) // jobs
  return [set(cores[i * size : (i + 1) * size]) or set(cores) for i in range(jobs)]


def start_process(
  command: Sequence[str],
  log: Path,
  cores: set[int],
  *,
  folder: str | None = None,
  environment: Mapping[str, str] = types.MappingProxyType({}),
) -> RunningProcess:
  """Starts a process.

  Args:
    command: what it runs.
    log: where to append what it says.
    cores: those that it may use.
    folder: where it is started; None: here.
    environment: what it has beside this process's own.
  """
  log.parent.mkdir(parents=True, exist_ok=True)
  ours = os.sched_getaffinity(0)
  # The process inherits it; running code between fork and exec could deadlock JAX.
  os.sched_setaffinity(0, cores)
  try:
    with open(log, "a") as file:
      process = subprocess.Popen(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for the parent, which passes it on
        cwd=folder,
        # Unbuffered, or the error would not be the last line.
        env=os.environ | dict(environment) | {"PYTHONUNBUFFERED": "1"},
      )
  finally:
    os.sched_setaffinity(0, ours)
  return RunningProcess(process, cores, time.monotonic(), log)


def _terminate(children: Iterable[RunningProcess], signaled: set[int]) -> None:
  """Each once: the second signal would not wait."""
  for child in children:
    if child.process.poll() is None and child.process.pid not in signaled:
      child.process.send_signal(signal.SIGTERM)
      signaled.add(child.process.pid)


def error_message(child: RunningProcess) -> str | None:
  """What went wrong in a process that has ended: its last line."""
  if not child.process.returncode:
    return None
  said = child.log.read_text().strip().splitlines()
  last = said[-1].removeprefix("error: ") if said else "it said nothing"
  return f"{last} (exit status {child.process.returncode}; {child.log})"
