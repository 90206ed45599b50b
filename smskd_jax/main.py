"""Runs an experiment, stage after stage, or continues an interrupted one.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The config file describes the whole experiment, and the command line changes any field of it:

  --config=configs/smskd.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=at+kd
  --config.seed=1 --config.stages[1].epochs=5 --config.stages[1].reference.weight=0.5

--dry_run prints the plan and the resolved config. Results are in WORKDIR/report.md and WORKDIR/result.json.
"""

import argparse
from collections.abc import Sequence
import sys

from smskd_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the experiment of a command line; returns the exit status."""
  parser = cli.make_parser("main", __doc__)
  cli.add_training_flags(parser)
  parser.add_argument(
    "--profile",
    type=cli.integer(0),
    default=0,
    help="training steps of each stage to trace into WORKDIR/profile before it trains (default: 0)",
  )
  return cli.run_with_config(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> int:
  from smskd_jax.engine import experiment  # after the flags: --help must not import JAX

  experiment.run(
    flags.config,
    flags.workdir,
    store=flags.store,
    cpu_devices=flags.cpu_devices,
    dry_run=flags.dry_run,
    profile=flags.profile,
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
