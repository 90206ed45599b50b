"""The command line of the programs that take a config: their flags, and one line for each mistake."""

from collections.abc import Callable, Sequence
import faulthandler
import functools
import re
import sys
import traceback
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from smskd_jax import entry_point
from smskd_jax.config import config_file
from smskd_jax.errors import UserError, check_encoding, print_error

_ARGV: list[str] = []  # of the program that runs; ml_collections looks for overrides here
CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A Python file with get_config, perhaps with :arguments.", sys_argv=_ARGV
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same again goes on where it stopped.")
STORE = flags.DEFINE_string("store", None, "Folder of stages that runs share; default: WORKDIR/store.")
CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices", None, "Virtual devices of a CPU; default: one per core, with at least 32 images each."
)
COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache", None, "Folder of compiled programs, or 'off'; default: one in the user's cache folder."
)
DISTRIBUTED = flags.DEFINE_string(
  "distributed",
  "off",
  "Several processes, one run: 'auto' (SLURM, Open MPI, Kubernetes, Cloud TPU), or "
  "HOST:PORT,PROCESSES,PROCESS.",
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run, and stop.")


def start(about: str | None, run: Callable[[], int]) -> None:
  """Parses the flags, runs the program and ends the process with its status.

  Args:
    about: what --help says of the program, before its flags.
    run: the program, to be called when the flags are there.
  """
  app.run(functools.partial(main, run), flags_parser=functools.partial(parse_flags, about))


def main(run: Callable[[], int], argv: Sequence[str]) -> int:
  """Checks the flags that every program needs and runs it; returns the exit status."""
  # Of the libraries, which tell of every file and of absent TPUs; their errors in the background are raised, too.
  logging.set_verbosity(logging.FATAL)

  def program() -> int:
    if len(argv) > 1:
      raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
    for flag in (CONFIG, WORKDIR):
      if not flag.value:
        raise UserError(f"--{flag.name}: missing; see --help")
    if STORE.value is not None and not STORE.value.strip():
      raise UserError(f"--{STORE.name}: empty; name a folder, or leave the flag out")
    return _run(run)

  folders = lambda: {"--workdir": WORKDIR.value, "--store": STORE.value}
  if DISTRIBUTED.value == "off":
    return entry_point.run(program, folders)
  return _as_one_of_several(program, folders)


def _as_one_of_several(program: Callable[[], int], folders: Callable[[], entry_point.Folders]) -> int:
  """Runs the program in one of several processes. Where it fails, it ends without waiting for the others."""
  from smskd_jax.runtime import distributed

  faulthandler.disable()  # where the lead is gone JAX ends this process, and says so in a line: no stack is needed
  try:
    status = entry_point.run(program, folders)
  except Exception as error:
    status = 1
    if distributed.is_peer_failure(error):
      said = str(error).partition("\n")[0]
      told = f"another process is gone ({said}); start all again: they go on from the last checkpoint"
      print(f"error: {entry_point.who()}{told}", file=sys.stderr)
    else:
      traceback.print_exc()
  if status in (1, 2):
    distributed.abort(status)
  return status


def _run(run: Callable[[], int]) -> int:
  from smskd_jax.runtime import (
    compilation_cache,  # after the flags: --help need not wait for JAX
    distributed,
  )

  distributed.initialize(DISTRIBUTED.value)
  if not DRY_RUN.value:
    compilation_cache.enable(COMPILATION_CACHE.value)
  return run()


def parse_flags(about: str | None, argv: Sequence[str]) -> list[str]:
  """Parses the command line; a mistake in it, or in the config file's own arguments, is one line and status 2."""
  if any(arg in ("--help", "-help", "-h") for arg in argv[1:]):
    own = flags.FLAGS.main_module_help()
    shared = flags.FLAGS.module_help(__name__)
    print(f"{about}\nflags:\n{own}\n{shared}" if own.strip() else f"{about}\nflags:\n{shared}")
    sys.exit(0)
  _ARGV[:] = argv
  flags.FLAGS["config"].parser = _ConfigParser()
  try:
    check_encoding(argv)
    return flags.FLAGS(list(argv))
  except _Refused as error:
    sys.exit(print_error(error.mistake))
  except (
    flags.Error,
    TypeError,
    ValueError,
  ) as error:  # of absl, or what ml_collections makes of a bad value
    no_dict = r"\1 is no dict; write it as \"{'name': 'value'}\""
    message = str(error).removeprefix("ERROR:: ")
    message = re.sub("Failed to parse (.*) as a ConfigDict: .*", no_dict, message, flags=re.DOTALL)
    sys.exit(print_error(UserError(message)))


class _Refused(Exception):
  """A mistake in the config, on its way through absl, which would wrap a ValueError."""

  def __init__(self, mistake: UserError):
    super().__init__(str(mistake))
    self.mistake = mistake


class _ConfigParser(flags.ArgumentParser):
  """Loads the config file in the place of ml_collections' parser, whose errors hold whole tracebacks."""

  def parse(self, argument: str) -> Any:
    """The config of a file, checked to have every field that the command line changes.

    Raises:
      _Refused: it has a mistake.
    """
    try:
      config = config_file.load(argument)
      config_file.check_overrides(config, _ARGV)
    except UserError as error:
      raise _Refused(error) from error
    return config

  def flag_type(self) -> str:
    """Name of the value's type in --help."""
    return "config file"
