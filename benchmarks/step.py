"""Time of a training step, in several forms and in plain PyTorch.

  python benchmarks/step.py [--cases=kd:resnet56:resnet20,...] [--out=benchmarks/results/step.json]

A case is KIND:TEACHER:STUDENT, of CIFAR ResNets. Kinds: a method (kd, rkd, crd), and smskd, which is kd with a
reference term. A step is the program that a run compiles: frozen networks, student, losses, gradients, SGD with
momentum and weight decay. Its batch is on the devices, without augmentation. Sides:

  ours             the training step, with one virtual device for each core
  as_written       the training step with XLA's convolutions instead of those of smskd_jax/layers/convolution.py
  cached           the training step with cached teacher outputs (`teacher_cache`)
  nchw             PyTorch in its default memory format, as in public code, on all cores
  channels_last    PyTorch in the channels-last memory format, on all cores

PyTorch runs in a process of its own, benchmarks/torch_step.py, so that neither side uses the other's threads, in the
Python that `--torch_python` names: one with PyTorch and the requirements of this package.

All sides start from equal variables and must give equal losses before the timing (crd: to 2 %, because its negatives
are sampled). The sides take turns of a few steps; the ratio to `nchw` is computed for each turn, and its median and
quartiles are reported: below 1 is faster than PyTorch. The machine must be idle.
"""

import argparse
import contextlib
import functools
import json
import os
from pathlib import Path
import pickle
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np

from smskd_jax import data
from smskd_jax.config import experiment, method, network, resolve, stage
from smskd_jax.data import augment
from smskd_jax.engine.plan import make_plans
from smskd_jax.layers import convolution
from smskd_jax.models import introspection
from smskd_jax.runtime import console, parallel
from smskd_jax.runtime.workdir import environment
from smskd_jax.training import initialization
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, CachedOutputs, Frozen

CASES = (
  "kd:resnet32x4:resnet8x4,smskd:resnet32x4:resnet8x4,kd:resnet56:resnet20,smskd:resnet56:resnet20,"
  "rkd:resnet56:resnet20,crd:resnet56:resnet20"
)
WEIGHTS = {"kd": 0.9, "rkd": 1.0, "crd": 0.8}
TORCH_SIDES = ("nchw", "channels_last")
SIDES = ("ours", "as_written", "cached", *TORCH_SIDES)


def make_plan(case, dataset, *, batch_size, cache="off", dtype="float32", source="cifar10", image_size=0):
  kind, teacher, student = case.split(":")
  name = "kd" if kind == "smskd" else kind
  fields = {
    "teachers": ("teacher",),
    "methods": (method(name, weight=WEIGHTS[name]),),
    "teacher_cache": cache,
    "batch_size": batch_size,
    "views": ("plain",),
  }
  config = experiment(
    data={"source": source, "image_size": image_size},
    networks={"teacher": network(teacher, dtype=dtype), "student": network(student, dtype=dtype)},
    stages=(
      stage("teacher", batch_size=batch_size),
      stage("student", **fields),
      stage("student", reference={"stage": "previous"}, **fields),
    ),
  )
  return make_plans(resolve(config), dataset)[2 if kind == "smskd" else 1]


def init_train_state(plan, dataset):
  """(state, frozen) on the host, with a reference that differs from the student."""
  image, init = introspection.image_spec(dataset.image_shape), initialization.init_variables
  (teacher,) = (init(network, jax.random.key(1), image) for network in plan.stage.teachers)
  student = init(plan.stage.student, jax.random.key(0), image)
  state = initialization.init_state(
    plan.stage, jax.random.key(2), student, (teacher,), image, dataset.train.label
  )
  reference = init(plan.stage.student, jax.random.key(3), image) if plan.stage.reference else None
  return jax.device_get((state, Frozen(jax.random.key(4), (teacher,), reference)))


class TrainStep:
  """The training step of the package, for one batch that lies on the devices."""

  def __init__(self, plan, inputs, batch, devices, steps_per_call=1):
    self.state, self.frozen = parallel.replicate(inputs, devices)
    step = make_train_step(plan.stage, parallel.AXIS)
    if steps_per_call == 1:
      batch = parallel.shard(batch, devices)
    else:
      step = parallel.scan_steps(step)
      batch = parallel.shard_local_steps([batch] * steps_per_call, devices)
    self.batch, self.metrics = jax.device_put(batch), {}
    self.compiled = parallel.compile_step(step, devices)

  def compile(self):
    """Compiles the program before the first call."""
    self.compiled = self.compiled.lower(self.state, self.frozen, self.batch).compile()

  def launch(self):
    """Starts one call."""
    self.state, self.metrics = self.compiled(self.state, self.frozen, self.batch)

  def wait(self):
    """Waits for all calls."""
    jax.block_until_ready(self.state)

  def run(self):
    """Trains one call and returns the loss of its first step."""
    self.launch()
    self.wait()
    return float(np.ravel(self.metrics["loss"])[0])


class TorchProcess:
  """Process of benchmarks/torch_step.py; it ends with its input."""

  def __init__(self, python, case):
    command = [python, Path(__file__).with_name("torch_step.py")]
    self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    self.version = self.call(_without_keys(case))

  def call(self, request):
    """The reply to a request."""
    pickle.dump(request, self.process.stdin)
    self.process.stdin.flush()
    return pickle.load(self.process.stdout)


class TorchStep(NamedTuple):
  """A side of PyTorch."""

  process: TorchProcess
  name: str

  def run(self):
    """Trains one step and returns the loss."""
    return self.process.call((self.name, 1))[0]

  def seconds(self, steps):
    """Seconds per step, as the process measures them."""
    return self.process.call((self.name, steps))[1]


def _without_keys(tree):
  """The arrays of a tree as NumPy's, without random keys."""

  def without_key(x):
    return None if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

  return jax.tree.map(without_key, jax.device_get(tree))


def normalized(image, dataset):
  """Normalized images, on the host."""
  return np.asarray(augment.normalize(image, dataset.mean, dataset.std))


def cache_teacher(plan, frozen, image, dataset):
  """The frozen inputs with cached teacher outputs instead of the teacher's variables."""
  forward = jax.jit(functools.partial(stage_lib.frozen_outputs, plan.stage.teachers[0]))
  outputs = forward(frozen.teachers[0], image)
  row_index = np.arange(len(dataset.train.label), dtype=np.int32)
  logits, embedding = (
    np.pad(np.asarray(x), ((0, len(row_index) - len(x)), (0, 0)))[:, None]
    for x in (outputs.logits, outputs.embedding)
  )
  return frozen._replace(teachers=(CachedOutputs(row_index, logits, embedding),))


def make_sides(case, args, dataset, devices):
  options = {"batch_size": args.batch_size, "source": args.data}
  plan, cached = (make_plan(case, dataset, cache=cache, **options) for cache in ("off", "float32"))
  index = np.arange(args.batch_size, dtype=np.int32)
  batch = Batch(dataset.train.image[index], dataset.train.label[index], index)
  image = normalized(batch.image, dataset)
  inputs = init_train_state(plan, dataset)
  if case.startswith("crd:"):  # the first step sets its normalizers
    warm = TrainStep(plan, inputs, batch, devices)
    warm.run()
    inputs = inputs[0]._replace(method_state=jax.device_get(warm.state.method_state)), inputs[1]
  yield "ours", TrainStep(plan, inputs, batch, devices)
  yield "as_written", TrainStep(plan, inputs, batch, devices)
  yield (
    "cached",
    TrainStep(cached, (inputs[0], cache_teacher(plan, inputs[1], image, dataset)), batch, devices),
  )
  torch = TorchProcess(args.torch_python, (case, options, inputs, image, batch))
  for name in TORCH_SIDES:
    yield name, TorchStep(torch, name)


def check_losses(sides, case):
  """Runs each side once, which also compiles; the losses must be equal."""
  losses = {}
  for name, side in sides.items():
    with convolution.use_xla_convolution() if name == "as_written" else contextlib.nullcontext():
      losses[name] = side.run()
  tolerance = 2e-2 if case.startswith("crd:") else 1e-3
  for name, loss in losses.items():
    if abs(loss / losses["nchw"] - 1) > tolerance:
      raise SystemExit(f"{case}: the loss of {name} is {loss:.6g}, of nchw {losses['nchw']:.6g}")


def seconds_per_step(side, steps):
  if isinstance(side, TorchStep):
    return side.seconds(steps)
  began = time.perf_counter()
  for _ in range(steps):
    side.run()
  return (time.perf_counter() - began) / steps


def seconds_in_turns(sides, turns, turn_seconds):
  """Seconds per call of each side, turn by turn; a turn is about `turn_seconds` long.

  Calls of a turn are started without waiting for the previous ones, as in a training loop.
  """

  def seconds_per_call(side, calls):
    began = time.perf_counter()
    for _ in range(calls):
      side.launch()
    side.wait()
    return (time.perf_counter() - began) / calls

  calls = {}
  for name, side in sides.items():
    seconds_per_call(side, 1)
    calls[name] = max(1, round(turn_seconds / seconds_per_call(side, 3)))
  by_turn = [
    {name: seconds_per_call(side, calls[name]) for name, side in sides.items()} for _ in range(turns)
  ]
  return {name: [turn[name] for turn in by_turn] for name in sides}


def measure(case, args, dataset, devices):
  sides = dict(make_sides(case, args, dataset, devices))
  check_losses(sides, case)
  turns = {name: [] for name in SIDES}
  for i in range(args.repeats + 1):
    for name in SIDES:
      seconds = seconds_per_step(sides[name], args.steps)
      if i:  # the first warms up
        turns[name].append(seconds)
  row = {"case": case, "batch_size": args.batch_size, "torch": sides["nchw"].process.version}
  for name, seconds in turns.items():
    ratios = [a / b for a, b in zip(seconds, turns["nchw"], strict=True)]
    lower, middle, upper = np.percentile(ratios, (25, 50, 75)).tolist()
    row[name] = {
      "milliseconds": 1e3 * statistics.median(seconds),
      "ratio": middle,
      "quartiles": [lower, upper],
    }
  return row


def table(rows):
  def cell(result):
    return f"{result['milliseconds']:.0f} ({result['ratio']:.2f})"

  return console.format_table(
    ("case", *SIDES), [(row["case"], *(cell(row[name]) for name in SIDES)) for row in rows]
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cases", default=CASES, help="joined by commas")
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
  parser.add_argument("--repeats", type=int, default=7, help="timed turns of each side")
  parser.add_argument("--torch_python", default=sys.executable, help="the Python that has PyTorch")
  parser.add_argument("--out", type=Path, help="a JSON file for the table, written after each row")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size])
  cores = len(os.sched_getaffinity(0))
  dataset, rows = data.load(args.data), []
  for case in args.cases.split(","):
    rows.append(measure(case, args, dataset, devices))
    console.log(json.dumps(rows[-1]))
    if args.out:
      result = {"cores": cores, "steps": rows, **environment(devices)}
      args.out.write_text(json.dumps(result, indent=2) + "\n")
  console.log(f"milliseconds per step (ratio to nchw)\n\n{table(rows)}")


if __name__ == "__main__":
  main()
