"""Trains by distillation, stage after stage: runs an experiment, or goes on with an interrupted one.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The config file says everything, and any field of it can be changed on the command line:

  --config=configs/smskd.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=at+kd
  --config.seed=1 --config.stages[1].epochs=5 --config.stages[1].reference.weight=0.5

--dry_run prints what would run and the resolved config. WORKDIR/report.md tells what happened.
"""

from absl import flags

from smskd_jax import command

_PROFILE = flags.DEFINE_integer(
  "profile", 0, "Steps of each stage to trace into WORKDIR/profile before it trains.", lower_bound=0
)


def run() -> int:
  """Runs the experiment that the flags describe; returns the exit status."""
  from smskd_jax.engine import experiment  # after the flags: --help need not wait for JAX

  experiment.run(
    command.CONFIG.value,
    str(command.WORKDIR.value),
    store=command.STORE.value,
    cpu_devices=command.CPU_DEVICES.value,
    dry_run=command.DRY_RUN.value,
    profile=_PROFILE.value,
  )
  return 0


if __name__ == "__main__":
  command.start(__doc__, run)
