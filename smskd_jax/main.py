"""Trains by distillation, stage after stage: runs an experiment, or goes on with an interrupted one.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The config file says everything, and any field of it can be changed on the command line:

  --config=configs/cifar.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=fitnet+kd
  --config.seed=1 --config.stages[1].epochs=5 --config.stages[1].reference.weight=0.5

--dry_run prints what would run. WORKDIR/report.md tells what happened.
"""

from collections.abc import Sequence
from pathlib import Path
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from smskd_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The experiment: a Python file with get_config, perhaps with :arguments."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. The same again goes on where it stopped.")
_STORE = flags.DEFINE_string("store", None, "Folder of stages that runs share; default: WORKDIR/store.")
_CPU_DEVICES = flags.DEFINE_integer(
  "cpu_devices", None, "Virtual devices of a CPU; default: one per core, with at least 32 images each."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run and the resolved config, and stop.")


def main(argv: Sequence[str]) -> int:
  """Runs the experiment that the flags describe; returns the exit status."""
  logging.set_verbosity(logging.ERROR)  # of the libraries: they tell of every file and of absent TPUs
  try:
    if len(argv) > 1:
      raise UserError(f"unexpected argument {argv[1]!r}; flags begin with --")
    for flag in (_CONFIG, _WORKDIR):
      if flag.value is None:
        raise UserError(f"--{flag.name}: missing; see --help")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not Path(path).is_file():
      raise UserError(f"--config: there is no file {path}")
    return _run()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _run() -> int:
  from smskd_jax import experiment  # after the flags: --help need not wait for JAX
  from smskd_jax.runtime.interrupt import Interrupted

  try:
    experiment.run(
      _CONFIG.value,
      str(_WORKDIR.value),
      store=_STORE.value,
      cpu_devices=_CPU_DEVICES.value,
      dry_run=_DRY_RUN.value,
    )
  except Interrupted as stop:
    print(f"{stop}; the same command goes on from there", file=sys.stderr)
    return 0 if stop.signum == signal.SIGTERM else 128 + stop.signum
  return 0


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the command line; a mistake in it, or in the config file's own arguments, is one line and status 2."""
  if any(arg in ("--help", "-help", "-h") for arg in argv[1:]):
    print(f"{__doc__}\nflags:\n{flags.FLAGS.main_module_help()}")
    sys.exit(0)
  try:
    return flags.FLAGS(list(argv))
  except UserError as error:
    message = str(error)
  except flags.Error as error:
    message = str(error)
  except (
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
  ) as error:  # what ml_collections makes of a bad override
    message = f"an override names no field of the config: {error}"
  except FileNotFoundError as error:
    message = f"--config: {error}"
  print("error: " + " ".join(message.replace("\\n", " ").split()), file=sys.stderr)
  sys.exit(2)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
