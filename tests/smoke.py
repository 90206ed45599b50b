"""configs/smoke.py with networks of three convolutions, for tests of the main program."""

import runs
from smskd_jax.config import network
from tiny import SMALL


def get_config():
  """Returns the experiment; its stages have enough steps for a stop between checkpoints."""
  config = runs.module("configs/smoke.py").get_config()
  with config.ignore_type():
    config.networks = {"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)}
  return config
