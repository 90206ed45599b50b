"""configs/smoke.py with networks of three convolutions, for tests of the main program's processes."""

import runs
from smskd_jax.config import network
from tiny import SMALL


def get_config():
  """Its stages have enough steps to be stopped between checkpoints."""
  config = runs.module("configs/smoke.py").get_config()
  with config.ignore_type():
    config.networks = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}
  return config
