"""Small whole runs, and what must be equal in two of them."""

import json
import os
from pathlib import Path
import subprocess
import sys

from smskd_jax.config import experiment, method, network, stage
from smskd_jax.runtime import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ("--config=configs/smoke.py", "--cpu_devices=2")


def tiny(**fields):
  """A teacher and two student stages on scikit-learn's digits, of a few steps each."""
  common = {"batch_size": 128, "augment": {"padding": 1, "flip": False}}
  student = {"learner": "student", "teachers": ("teacher",), **common}
  return experiment(
    **{
      "data": {"source": "digits"},
      "networks": {"teacher": network("resnet8", width=0.25), "student": network("resnet8", width=0.125)},
      "stages": (
        stage("teacher", epochs=2, **common),
        stage(name="fitnet", methods=(method("fitnet"),), **student),
        stage(name="kd", methods=(method("kd"),), reference={"stage": "previous"}, epochs=2, **student),
      ),
      "checkpoint": {"every_steps": 4},
      "log_every_steps": 3,
    }
    | fields
  )


def start(workdir, *flags):
  """The main program in a process of its own."""
  command = [sys.executable, "-m", "smskd_jax.main", f"--workdir={workdir}", *flags]
  environment = os.environ | {"PYTHONWARNINGS": "ignore"}
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )


def main(workdir, *flags):
  """(exit status, stdout, stderr) of the main program."""
  process = start(workdir, *flags)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def left_by(workdir):
  """What a run leaves that must not depend on interruptions: its result but for times, and every final network."""
  result = json.loads((Path(workdir) / "result.json").read_text())
  digests = {}
  del result["git_revision"]  # not a result: it changes when somebody commits in the meantime
  for one in result["stages"]:
    del one["seconds"]
    digests[one["name"]] = checkpoint.digest(
      checkpoint.load_variables(Path(workdir) / "store" / one["key"] / "final")
    )
  return result, digests
