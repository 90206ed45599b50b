"""Runs a study: variants of an experiment times seeds, every stage trained once, and a table of what differs.

  python -m smskd_jax.study --config=configs/studies/table3.py --workdir=runs/table3

Variants share their teachers and every common beginning of their stages. The same command goes on where it was stopped;
seeds may be added. --dry_run prints the tree of stages, what of it is in the store, and how long the rest will take.
WORKDIR/report.md has the table.
"""

import sys

from absl import flags

from smskd_jax import command
from smskd_jax.errors import UserError

_JOBS = flags.DEFINE_integer(
  "jobs", 1, "How many runs at once, each on its share of the cores.", lower_bound=1
)
_PARALLEL_SEEDS = flags.DEFINE_integer(
  "parallel_seeds",
  1,
  "How many seeds of a variant to train at once, one on each core or device.",
  lower_bound=1,
)
_RAY = flags.DEFINE_string(
  "ray",
  "",
  "Spread the runs over a Ray cluster: 'local', one started on this machine; 'auto' or HOST:PORT, one that this "
  "machine is a node of. --jobs is then how many at once on a node.",
)
_UNIT = flags.DEFINE_string(
  "unit", "", "VARIANT:SEED, VARIANT:SEED,SEED, a number or teachers: run that unit, and write no report."
)


def run() -> int:
  """Runs the study that the flags describe; returns the exit status."""
  from smskd_jax.studies import runner  # after the flags: --help need not wait for JAX

  config, workdir = command.CONFIG.value, str(command.WORKDIR.value)
  store, cpu_devices = command.STORE.value, command.CPU_DEVICES.value
  if _UNIT.value and _RAY.value:
    raise UserError(
      f"--ray: {_RAY.value!r} runs all units of a study, --unit={_UNIT.value} one; leave one of them out"
    )
  if _UNIT.value and not command.DRY_RUN.value:
    failures = runner.run_unit(config, workdir, _UNIT.value, store=store, cpu_devices=cpu_devices)
  else:
    failures = runner.run(
      config,
      workdir,
      store=store,
      cpu_devices=cpu_devices,
      dry_run=command.DRY_RUN.value,
      jobs=_JOBS.value,
      parallel_seeds=_PARALLEL_SEEDS.value,
      ray=_RAY.value,
      command=[sys.executable, "-m", "smskd_jax.study", *sys.argv[1:]],
    )
  for unit, error in failures.items():
    print(f"error: {unit}: {error}", file=sys.stderr)
  return 1 if failures else 0


if __name__ == "__main__":
  command.start(__doc__, run)
