"""Trains three SMSKD stages in float64 on random images, in one process or several, and prints every loss.

python tests/process_steps.py off|HOST:PORT,PROCESSES,PROCESS DEVICES_OF_EACH
"""

import json
import sys

import jax
import numpy as np

import networks
from smskd_jax.runtime import distributed, parallel
from smskd_jax.training.loop import SingleTrainer
from smskd_jax.training.stage import student_variables
from smskd_jax.types import Batch

METHODS, STEPS = (("kd", 0.9), ("crd", 0.8), ("rkd", 1.0)), 20


def losses(devices):
  """Losses of each step, by method; the reference of a stage is the student of the previous stage."""
  found, left = {}, None
  for name, weight in METHODS:
    stage = networks.make_stage((name, weight), reference={"weight": 0.5} if left else None)
    state, frozen = networks.init_stage(stage, dtype=np.float64, variables=left)
    if left:
      frozen = frozen._replace(reference=left)
    program = SingleTrainer(stage, devices, *parallel.replicate((state, frozen), devices))
    rows = parallel.local_batch_indices(16, devices)
    batches = (networks.batch_of(step, dtype=np.float64) for step in range(STEPS))
    metrics = [program.train([[Batch(*(x[rows] for x in batch))]]) for batch in batches]
    found[name] = [float(values["loss"]) for values in metrics]
    left = jax.device_get(student_variables(program.state(0)))
  return found


def main(mode, devices_of_each):
  jax.config.update("jax_enable_x64", True)
  distributed.initialize(mode)
  devices = parallel.select_devices([16], devices_of_each)
  print(json.dumps({"devices": len(devices), "losses": losses(devices)}))


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]))
