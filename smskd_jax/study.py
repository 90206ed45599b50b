"""Runs a study: variants times seeds, every shared stage trained once, and a report.

  python -m smskd_jax.study --config=configs/studies/table3.py --workdir=runs/table3

Variants share their teachers and every common sequence of first stages. The same command continues an interrupted
study; seeds may be added. --dry_run prints the graph of stages, which of them are in the store, and the time that the
others are estimated to take. The table is in WORKDIR/report.md.
"""

import argparse
from collections.abc import Sequence
import sys

from smskd_jax import cli
from smskd_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the study of a command line; returns the exit status."""
  parser = cli.make_parser("study", __doc__)
  cli.add_training_flags(parser)
  parser.add_argument(
    "--jobs", type=cli.integer(1), default=1, help="runs at once, each on its share of the cores (default: 1)"
  )
  parser.add_argument(
    "--parallel_seeds",
    type=cli.integer(1),
    default=1,
    help="seeds of a variant that are trained at once, one on each core or device (default: 1)",
  )
  parser.add_argument(
    "--ray",
    default="",
    help="spread the runs over a Ray cluster: local, started on this machine; auto or HOST:PORT, a running cluster "
    "that this machine is a node of. --jobs is then the number of runs at once on each node",
  )
  parser.add_argument(
    "--unit",
    default="",
    help="run one unit and write no report: VARIANT:SEED, VARIANT:SEED,SEED, a number, or teachers",
  )
  return cli.run_with_config(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> int:
  from smskd_jax.studies import runner  # after the flags: --help must not import JAX

  if flags.unit and flags.ray:
    raise UserError(
      f"--ray: {flags.ray!r} runs all units of a study, --unit={flags.unit} one; leave one of the two flags out"
    )
  if flags.unit and not flags.dry_run:
    failures = runner.run_unit(
      flags.config, flags.workdir, flags.unit, store=flags.store, cpu_devices=flags.cpu_devices
    )
  else:
    failures = runner.run(
      flags.config,
      flags.workdir,
      store=flags.store,
      cpu_devices=flags.cpu_devices,
      dry_run=flags.dry_run,
      jobs=flags.jobs,
      parallel_seeds=flags.parallel_seeds,
      ray=flags.ray,
      command=[sys.executable, "-m", "smskd_jax.study", *flags.arguments],
    )
  for unit, error in failures.items():
    print(f"error: {unit}: {error}", file=sys.stderr)
  return 1 if failures else 0


if __name__ == "__main__":
  sys.exit(main())
