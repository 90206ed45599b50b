"""What a training step costs: ours in several forms, and the same step in plain PyTorch.

  python benchmarks/step.py [--cases=kd:resnet56:resnet20,...] [--out=benchmarks/results/step.json]

A case is KIND:TEACHER:STUDENT, of CIFAR ResNets. Kinds: a method (kd, rkd, crd), and smskd, which is kd anchored by a
reference. A step is what a run compiles: frozen networks, student, losses, gradients, SGD with momentum and decay; its
batch lies on the devices, and images are seen as they are. Sides:

  ours             one virtual device a core
  as_written       the same without the forms of smskd_jax/layers/convolution.py
  cached           the same with the teacher's answers kept (`teacher_cache`)
  nchw             PyTorch as public code of the field uses it, on all cores
  channels_last    PyTorch with that memory format, on all cores

All sides start from the same variables and must give the same loss before anything is timed (crd: to 2 %, its negatives
are drawn). They take turns of some steps; the ratio to `nchw` is taken turn by turn, and its median and quartiles are
reported: below 1 is faster than PyTorch. The machine must be idle, and above all PyTorch's.
"""

import argparse
import contextlib
import json
import os
from pathlib import Path
import statistics
import time

import jax
import numpy as np
import torch
import torch_step

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
SIDES = ("ours", "as_written", "cached", "nchw", "channels_last")


def make_plan(case, cache, args, dataset):
  kind, teacher, student = case.split(":")
  name = "kd" if kind == "smskd" else kind
  fields = {
    "teachers": ("teacher",),
    "methods": (method(name, weight=WEIGHTS[name]),),
    "teacher_cache": cache,
    "batch_size": args.batch_size,
    "views": ("plain",),
  }
  config = experiment(
    data={"source": args.data, "image_size": getattr(args, "image_size", 0)},
    networks={"teacher": network(teacher), "student": network(student)},
    stages=(
      stage("teacher", batch_size=args.batch_size),
      stage("student", **fields),
      stage("student", reference={"stage": "previous"}, **fields),
    ),
  )
  return make_plans(resolve(config), dataset)[2 if kind == "smskd" else 1]


def init_train_state(plan, dataset):
  """(state, frozen) on the host. The reference is another student, so that its term is not zero."""
  image, fresh = introspection.image_spec(dataset.image_shape), initialization.init_variables
  (teacher,) = (fresh(network, jax.random.key(1), image) for network in plan.stage.teachers)
  student = fresh(plan.stage.student, jax.random.key(0), image)
  state = initialization.init_state(
    plan.stage, jax.random.key(2), student, (teacher,), image, dataset.train.label
  )
  reference = fresh(plan.stage.student, jax.random.key(3), image) if plan.stage.reference else None
  return jax.device_get((state, Frozen(jax.random.key(4), (teacher,), reference)))


class Ours:
  """Our step; `run()` as the other sides."""

  def __init__(self, plan, begin, batch, devices):
    self.state, self.frozen = parallel.replicate(begin, devices)
    self.batch = jax.device_put(parallel.shard(batch, devices))
    self.compiled = parallel.compile_step(make_train_step(plan.stage, parallel.AXIS), devices)

  def run(self):
    """Trains once and returns the loss."""
    self.state, metrics = jax.block_until_ready(self.compiled(self.state, self.frozen, self.batch))
    return float(metrics["loss"])


def cache_teacher(plan, frozen, image, dataset):
  """What the teacher says of the batch, in the place of its variables."""
  says = stage_lib.frozen_outputs(plan.stage.teachers[0], frozen.teachers[0], image)
  row = np.arange(len(dataset.train.label), dtype=np.int32)

  def padded(x):
    return np.pad(np.asarray(x), ((0, len(row) - len(x)), (0, 0)))[:, None]

  return frozen._replace(teachers=(CachedOutputs(row, padded(says.logits), padded(says.embedding)),))


def sides_of(case, args, dataset, devices):
  plan, cached = (make_plan(case, cache, args, dataset) for cache in ("off", "float32"))
  index = np.arange(args.batch_size, dtype=np.int32)
  batch = Batch(dataset.train.image[index], dataset.train.label[index], index)
  image = np.asarray(augment.normalize(batch.image, dataset.mean, dataset.std))
  begin = init_train_state(plan, dataset)
  if case.startswith("crd:"):  # its first step fixes the normalizers
    warm = Ours(plan, begin, batch, devices)
    warm.run()
    begin = begin[0]._replace(method_state=jax.device_get(warm.state.method_state)), begin[1]
  yield "ours", Ours(plan, begin, batch, devices)
  yield "as_written", Ours(plan, begin, batch, devices)
  yield "cached", Ours(cached, (begin[0], cache_teacher(plan, begin[1], image, dataset)), batch, devices)
  for name in ("nchw", "channels_last"):
    yield name, torch_step.Step(plan, begin, image, batch, channels_last=name == "channels_last")


def first_losses(sides, case):
  """Runs each side once, which compiles ours; they must agree."""
  losses = {}
  for name, side in sides.items():
    with convolution.use_xla_convolution() if name == "as_written" else contextlib.nullcontext():
      losses[name] = side.run()
  tolerance = 2e-2 if case.startswith("crd:") else 1e-3
  for name, loss in losses.items():
    if abs(loss / losses["nchw"] - 1) > tolerance:
      raise SystemExit(f"{case}: the loss of {name} is {loss:.6g}, of nchw {losses['nchw']:.6g}")


def turn(side, steps):
  """Seconds a step."""
  began = time.perf_counter()
  for _ in range(steps):
    side.run()
  return (time.perf_counter() - began) / steps


def measure(case, args, dataset, devices):
  sides = dict(sides_of(case, args, dataset, devices))
  first_losses(sides, case)
  turns = {name: [] for name in SIDES}
  for i in range(args.repeats + 1):
    for name in SIDES:
      seconds = turn(sides[name], args.steps)
      if i:  # the first warms up
        turns[name].append(seconds)
  row = {"case": case, "batch_size": args.batch_size}
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
  def shown(one):
    return f"{one['milliseconds']:.0f} ({one['ratio']:.2f})"

  return console.format_table(
    ("case", *SIDES), [(row["case"], *(shown(row[name]) for name in SIDES)) for row in rows]
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cases", default=CASES, help="joined by commas")
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--steps", type=int, default=2, help="of a turn")
  parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
  parser.add_argument("--out", type=Path, help="a JSON file for the table, written after each row")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size])
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  dataset, rows = data.load(args.data), []
  for case in args.cases.split(","):
    rows.append(measure(case, args, dataset, devices))
    console.log(json.dumps(rows[-1]))
    if args.out:
      result = {"cores": cores, "torch": torch.__version__, "steps": rows, **environment(devices)}
      args.out.write_text(json.dumps(result, indent=2) + "\n")
  console.log(f"milliseconds a step (ratio to nchw)\n\n{table(rows)}")


if __name__ == "__main__":
  main()
