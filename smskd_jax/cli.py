"""Command lines: flags, exit status, and one line for each mistake of the user.

All programs parse their flags by argparse. Programs that train take a config file besides, whose fields any
`--config.PATH=VALUE` changes; ml_collections parses these.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import faulthandler
import logging
import os
from pathlib import Path
import re
import sys
import traceback
from typing import Any, NoReturn

from smskd_jax.errors import RENAMED, UserError, check_encoding, print_error, suggestion
from smskd_jax.runtime import distributed, resource_errors, signals

Folders = Mapping[str, str | Path | None]  # folders that a program writes to, by their flags

_CONFIG_HELP = """config:
  --config=FILE[:ARGUMENTS]  Python file with get_config, and its arguments name=value,...
  --config.FIELD=VALUE       changes a field of the config, as --config.stages[1].epochs=5"""


class _Parser(argparse.ArgumentParser):
  """Parser that raises the user's mistakes instead of exiting."""

  def error(self, message: str) -> NoReturn:
    """Raises the message of argparse.

    Raises:
      UserError: always.
    """
    message = message.removeprefix("argument ").replace("ignored explicit argument", "takes no value, got")
    raise UserError(f"{message}; see --help")


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
  """Parser for `python -m smskd_jax.PROGRAM`; --help prints the description before the flags."""
  return _Parser(
    prog=f"python -m smskd_jax.{program}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def add_training_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of programs that train.

  --config and its overrides are parsed by ml_collections.
  """
  parser.usage = "%(prog)s --config=FILE[:ARGUMENTS] --workdir=FOLDER [--config.FIELD=VALUE ...] [flags]"
  parser.epilog = _CONFIG_HELP
  add = parser.add_argument
  add("--workdir", help="folder of the run; the same command continues an interrupted run")
  add("--store", help="folder of stages that runs share (default: WORKDIR/store)")
  add(
    "--cpu_devices",
    type=integer(1),
    help="virtual devices of a CPU (default: one per core, with at least 32 images each)",
  )
  add("--compilation_cache", help="folder of compiled programs, or off (default: in the user's cache folder)")
  add(
    "--distributed",
    default=distributed.DISABLED,
    help="several processes for one run: auto (SLURM, Open MPI, Kubernetes, Cloud TPU), or "
    "HOST:PORT,NUM_PROCESSES,PROCESS_ID (default: off)",
  )
  add("--dry_run", action="store_true", help="print the plan and stop")


def integer(minimum: int) -> Callable[[str], int]:
  """Type of a flag: an integer of at least `minimum`."""

  def parse(text: str) -> int:
    try:
      value = int(text)
    except ValueError:
      raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if value < minimum:
      raise argparse.ArgumentTypeError(f"{value} is too small; it must be at least {minimum}")
    return value

  return parse


def run(
  parser: argparse.ArgumentParser,
  arguments: Sequence[str] | None,
  program: Callable[[argparse.Namespace], str],
) -> int:
  """Parses the command line and prints the text that the program returns.

  Args:
    parser: of the program.
    arguments: command line; None: that of the process.
    program: takes the flags.

  Returns:
    The exit status, as `exit_status`.
  """
  folders: dict[str, str | Path | None] = {}

  def parse_and_run() -> int:
    given = _command_line(arguments)
    flags = parser.parse_args(given)
    workdir = getattr(flags, "workdir", None)
    first = workdir if isinstance(workdir, str | Path) or not workdir else workdir[0]
    folders.update({"--out": getattr(flags, "out", None), "WORKDIR": first})
    print(program(flags))
    return 0

  return exit_status(parse_and_run, lambda: folders)


def run_with_config(
  parser: argparse.ArgumentParser,
  arguments: Sequence[str] | None,
  program: Callable[[argparse.Namespace], int],
) -> int:
  """Parses the command line of a program that trains, loads the config and runs the program.

  Args:
    parser: of the program, with `add_training_flags`.
    arguments: command line; None: that of the process.
    program: takes the flags, with the loaded config as `flags.config`; returns its exit status.

  Returns:
    The exit status, as `exit_status`.
  """
  try:
    given = _command_line(arguments)
    flags, rest = parser.parse_known_args(given)
    flags.config, flags.arguments = _load_config(rest, parser), given
    for name in ("config", "workdir"):
      if not getattr(flags, name):
        raise UserError(f"--{name}: missing; see --help")
    if flags.store is not None and not flags.store.strip():
      raise UserError("--store: empty; name a folder, or leave the flag out")
  except UserError as error:
    return print_error(error)

  def start() -> int:
    from smskd_jax.runtime import compilation_cache  # after the flags: --help must not import JAX

    distributed.initialize(flags.distributed)
    if not flags.dry_run:
      compilation_cache.enable(flags.compilation_cache)
    return program(flags)

  folders = {"--workdir": flags.workdir, "--store": flags.store}
  if flags.distributed == distributed.DISABLED:
    return exit_status(start, lambda: folders)
  return _exit_status_distributed(start, lambda: folders)


def exit_status(program: Callable[[], int], folders: Callable[[], Folders] = dict) -> int:
  """Runs a program; returns its exit status.

  The status is 2 after a mistake of the user, 1 if the machine lacks memory or disk space, and 128 + N after signal N.

  Args:
    program: returns its own status.
    folders: returns the folders that the program writes to, by their flags.
  """
  logging.getLogger("absl").addFilter(_is_not_from_orbax)
  try:
    return program()
  except UserError as error:
    return print_error(error, process_prefix())
  except BrokenPipeError:  # the reader of the output has closed it, as `| head` does
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except signals.Interrupted as stop:
    if distributed.is_primary():
      signals.write_line(f"{stop}; the same command continues from there")
    return 128 + stop.signum
  except Exception as error:
    line = resource_errors.explain(error, folders())
    if line is None:
      raise
    signals.write_line(f"error: {process_prefix()}{line}")
    return signals.exit_process(1)


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
  """Drops what orbax logs: it also raises its errors, and an error is one line."""
  return "orbax" not in record.pathname


def process_prefix() -> str:
  """Prefix of messages that names the process, as 'process 1: '; '' for a single process."""
  return f"process {distributed.process_index()}: " if distributed.is_initialized() else ""


def _exit_status_distributed(program: Callable[[], int], folders: Callable[[], Folders]) -> int:
  """Runs the program in one of several processes.

  A process that fails ends without waiting for the others.
  """
  faulthandler.disable()  # JAX ends this process with one line if process 0 is gone: no stack is needed
  try:
    status = exit_status(program, folders)
  except Exception as error:
    status = 1
    if distributed.is_peer_failure(error):
      first_line = str(error).partition("\n")[0]
      signals.write_line(
        f"error: {process_prefix()}another process is gone ({first_line}); start all processes again: they continue "
        "from the last checkpoint"
      )
    else:
      traceback.print_exc()
  if status in (1, 2):
    distributed.abort(status)
  return status


def _command_line(arguments: Sequence[str] | None) -> list[str]:
  given = sys.argv[1:] if arguments is None else list(arguments)
  check_encoding(given)
  return given


def _load_config(arguments: Sequence[str], parser: argparse.ArgumentParser) -> Any:
  """Config of the arguments that argparse left over: --config and its overrides.

  None without --config.

  Raises:
    UserError: an unknown flag, a mistake in the config file, or an override without a field or of another type.
  """
  from absl import flags
  from ml_collections import config_flags

  for argument in arguments:
    name = argument.partition("=")[0]
    if name.startswith("--") and not re.match(r"--(no)?config(\.|$)", name):
      raise UserError(_unknown_flag(name, parser))
  command_line = ["", *arguments]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=command_line)
  # The parser of ml_collections puts whole tracebacks into its errors.
  values["config"].parser = _ConfigParser(command_line)  # type: ignore[assignment]
  try:
    rest = values(command_line)[1:]
  except _ConfigError as error:
    raise error.mistake from error
  except (
    flags.Error,
    TypeError,
    ValueError,
  ) as error:  # of absl, or of ml_collections for a value of another type
    message = str(error).removeprefix("ERROR:: ")
    not_a_dict = r"\1 is not a dict; write it as " + """"{'name': 'value'}\""""
    raise UserError(
      re.sub("Failed to parse (.*) as a ConfigDict: .*", not_a_dict, message, flags=re.DOTALL)
    ) from error
  if rest:
    raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
  return values["config"].value


def _unknown_flag(name: str, parser: argparse.ArgumentParser) -> str:
  known = ["--config", *(option for action in parser._actions for option in action.option_strings)]
  if RENAMED.get(name) in known:
    return f"{name} is now {RENAMED[name]}"
  return f"unknown flag {name}{suggestion(name, known)}; see --help"


class _ConfigError(Exception):
  """Mistake in the config on its way through absl, which would wrap a ValueError."""

  def __init__(self, mistake: UserError):
    super().__init__(str(mistake))
    self.mistake = mistake


class _ConfigParser:
  """Parser of an absl flag that loads the config file."""

  syntactic_help = ""

  def __init__(self, command_line: Sequence[str]):
    self._command_line = command_line

  def parse(self, argument: str) -> Any:
    """Config of a file, whose fields include all that the command line changes.

    Raises:
      _ConfigError: the file or an override has a mistake.
    """
    from smskd_jax.config import config_file

    try:
      config = config_file.load(argument)
      config_file.check_overrides(config, self._command_line)
    except UserError as error:
      raise _ConfigError(error) from error
    return config

  def flag_type(self) -> str:
    """Name of the value's type."""
    return "config file"
