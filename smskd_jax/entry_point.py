"""The end of every command: its exit status, and one line for each mistake, signal and lack of the machine."""

from collections.abc import Callable, Mapping
from pathlib import Path

from smskd_jax.errors import UserError, print_error
from smskd_jax.runtime import distributed, resource_errors, signals

Folders = Mapping[str, str | Path | None]


def run(program: Callable[[], int], folders: Callable[[], Folders] = dict) -> int:
  """Runs a program; returns its exit status.

  The status is 2 after a mistake of the user, 1 where the machine lacks something, 128 + its number after a signal.

  Args:
    program: returns its own status.
    folders: gives those that it writes to, by their flags.
  """
  try:
    return program()
  except UserError as error:
    return print_error(error, who())
  except signals.Interrupted as stop:
    if distributed.is_primary():
      signals.write_line(f"{stop}; the same command goes on from there")
    return 128 + stop.signum
  except Exception as error:
    line = resource_errors.explain(error, folders())
    if line is None:
      raise
    signals.write_line(f"error: {who()}{line}")
    return signals.exit_process(1)


def who() -> str:
  """Prefix of messages that names the process; '' for a single one."""
  return f"process {distributed.process_index()}: " if distributed.is_initialized() else ""
