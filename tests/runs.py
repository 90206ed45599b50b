"""Small whole runs, and what must be equal in two of them."""

import importlib.util
import json
import os
from pathlib import Path
import socket
import subprocess
import sys

from smskd_jax.config import experiment, method, network, stage
from smskd_jax.runtime import checkpoint, integrity
from tiny import SMALL

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ("--config=tests/smoke.py", "--cpu_devices=2")


def tiny(model=SMALL, **fields):
  """A teacher and two student stages on scikit-learn's digits, of a few steps each."""
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  student = {"network": "student", "teachers": ("teacher",), **common}
  return experiment(
    **{
      "data": {"source": "digits"},
      "networks": {"teacher": network(model, width=0.25), "student": network(model, width=0.125)},
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


def module(path):
  """A config's file, as a module."""
  spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded


def start(workdir, *flags, module="main"):
  """The main program, or another, in a process of its own."""
  command = [sys.executable, "-m", f"smskd_jax.{module}", f"--workdir={workdir}", *flags]
  path = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))  # for `tiny.SMALL`
  environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
  return subprocess.Popen(
    command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
  )


def main(workdir, *flags):
  """(exit status, stdout, stderr) of the main program."""
  return program("main", workdir, *flags)


def program(module, workdir, *flags):
  """(exit status, stdout, stderr) of a program that takes a config."""
  process = start(workdir, *flags, module=module)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def study(workdir, config):
  """The numbers of a study that has run."""
  status, _, err = program("study", workdir, f"--config={config}", "--cpu_devices=1")
  assert status == 0, err
  return json.loads((Path(workdir) / "result.json").read_text())


def left_by(workdir, store=None):
  """Outputs of a run that must not depend on interruptions: its result but for times, and every final network."""
  result = integrity.read_json(Path(workdir) / "result.json")
  digests = {}
  del result["git_revision"]  # not a result: it changes when somebody commits in the meantime
  for one in result["stages"]:
    del one["seconds"], one["seconds_by_phase"]
    digests[one["name"]] = checkpoint.tree_digest(
      checkpoint.load_variables(Path(store or Path(workdir) / "store") / one["key"] / "final")
    )
  return result, digests


def port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def join(count):
  """Environment that tells each process of the others."""
  where = f"localhost:{port()}"
  return [f"{where},{count},{index}" for index in range(count)]


def end(started, timeout=300):
  """(exit status, stdout, stderr) of each."""
  said = [process.communicate(timeout=timeout) for process in started]
  return [(process.returncode, *of) for process, of in zip(started, said, strict=True)]
