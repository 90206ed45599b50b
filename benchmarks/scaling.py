"""Estimates the scaling to many devices from the collectives of the compiled training step.

  python benchmarks/scaling.py [--devices=8,64,512] [--out=benchmarks/results/scaling.json]

ResNet50 teaches MobileNetV1 on images of 224x224 pixels, 256 a device. For each number of devices the step is compiled
for as many virtual CPU devices, without running, and the number and bytes of its collectives are read from the compiled
text. With the operations of the step and published peaks of chips, this gives an estimate:

  compute      operations / (peak in bfloat16 x --utilization)
  exchange     of a ring: 2 (n - 1) / n x bytes / bandwidth one way for sums, (n - 1) / n for gathered arrays, and
               --latency for each collective
  efficiency   compute / (compute + exchange), without overlap; a lower bound, because XLA overlaps sums of gradients

Between hosts of eight H100 each, sums are computed within a host first, and an eighth crosses each network card.
These numbers are estimates of a model, not measurements.
"""

import argparse
import functools
import json
import math
from pathlib import Path
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.data import augment
from smskd_jax.losses import METHODS
from smskd_jax.models import MODELS, introspection
from smskd_jax.runtime import console, parallel
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.training import initialization, optimizer
from smskd_jax.training.reference import Reference
from smskd_jax.training.stage import Stage, Term
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen

SHAPE, CLASSES = (224, 224, 3), 1000
TEACHER, STUDENT = "imagenet_resnet50", "imagenet_mobilenet_v1"
STAGES = {"kd": ("kd", False), "smskd": ("kd", True), "rkd": ("rkd", False), "crd": ("crd", False)}
IMAGES = 1_281_167  # of the training set, for CRD's banks
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
  r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\("
)


class Chip(NamedTuple):
  """Published figures, of one chip."""

  peak: float  # operations a second in bfloat16, dense
  near: float  # bytes a second, one way, to the chips around
  far: float  # bytes a second, one way, to other hosts
  host: int  # chips that are near each other; 0: all


# TPU v5e: cloud.google.com/tpu/docs/v5e, 197 TFLOP/s and 1600 Gbit/s of links, both ways together. H100 SXM: NVIDIA's
# data sheet, 989 TFLOP/s dense and 900 GB/s of NVLink both ways together; between hosts a card of 400 Gbit/s each.
CHIPS = {"TPU v5e": Chip(197e12, 100e9, 100e9, 0), "H100": Chip(989e12, 450e9, 50e9, 8)}


def make_stage(kind):
  name, anchored = STAGES[kind]
  normalize = functools.partial(augment.normalize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  return Stage(
    student=MODELS[STUDENT](num_classes=CLASSES, dtype="bfloat16"),
    optimizer=optimizer.sgd(0.1),
    teachers=(MODELS[TEACHER](num_classes=CLASSES, dtype="bfloat16"),),
    terms=(Term(name, 1.0, METHODS[name]()),),
    reference=Reference(weight=0.5) if anchored else None,
    views=(lambda key, batch: normalize(batch.image),),
    all_examples_labeled=True,
  )


def exchanges(stage, devices, images):
  """The collectives of a step, (kind, bytes that a device ends with) each, and what it needs beside its arguments."""
  image, labels = introspection.image_spec(SHAPE), jax.ShapeDtypeStruct((IMAGES,), jnp.int32)
  learner, teacher = (
    introspection.variable_shapes(network, SHAPE) for network in (stage.student, *stage.teachers)
  )
  begin = functools.partial(initialization.init_state, stage, image=image)
  state = jax.eval_shape(
    lambda key, v, t, labels: begin(key, v, (t,), labels=labels), jax.random.key(0), learner, teacher, labels
  )
  frozen = Frozen(jax.random.key(0), (teacher,), learner if stage.reference else None)

  def spec(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct((len(devices), images, *shape), dtype)

  batch = Batch(spec(*SHAPE, dtype=jnp.uint8), spec(), spec())
  compiled = parallel.compile_step(make_train_step(stage, parallel.AXIS), devices)
  program = compiled.lower(state, frozen, batch).compile({"xla_backend_optimization_level": "0"})
  found = [(kind, size_of(types)) for types, kind in COLLECTIVE.findall(program.as_text())]
  return found, program.memory_analysis().temp_size_in_bytes


def size_of(types):
  """Bytes of the arrays in 'f32[8,16]{1,0}' or a tuple of such."""
  found = re.findall(r"(\w+)\[([\d,]*)\]", types)
  return sum(BYTES[name] * math.prod(int(n) for n in shape.split(",") if n) for name, shape in found)


def seconds_of(kind, size, count, chip, latency):
  """Of one collective on so many chips."""
  ways = 2 if kind == "all-reduce" else 1
  near = min(count, chip.host or count)
  hosts = count // near
  seconds = latency + ways * (near - 1) / near * size / chip.near
  if hosts > 1:
    # of what is gathered all comes over the cards of a host, of what is summed a card's share
    seconds += latency + ways * (hosts - 1) / hosts * size / near / chip.far
  return seconds


def estimate(stage, found, count, args):
  """By chip: milliseconds of computing and of exchange, and what is left of the devices."""
  forward = functools.partial(introspection.forward_flops, shape=SHAPE)
  passes = 3 * forward(stage.student) + sum(map(forward, stage.teachers))
  flops = args.images * (passes + (forward(stage.student) if stage.reference else 0))
  told = {}
  for name, chip in CHIPS.items():
    compute = flops / chip.peak / args.utilization
    exchange = sum(seconds_of(kind, size, count, chip, args.latency) for kind, size in found)
    told[name] = {
      "compute_ms": 1e3 * compute,
      "exchange_ms": 1e3 * exchange,
      "efficiency": compute / (compute + exchange),
    }
  return told


def measure(kind, count, devices, args):
  stage = make_stage(kind)
  found, temporaries = exchanges(stage, devices[:count], args.images)
  kinds = sorted({of for of, _ in found})
  return {
    "stage": kind,
    "devices": count,
    "collectives": {of: sum(other == of for other, _ in found) for of in kinds},
    "bytes": {of: sum(size for other, size in found if other == of) for of in kinds},
    "temporaries_of_a_device": temporaries,  # of a program for CPUs: on chips maps of bfloat16 take half
    "estimate": estimate(stage, found, count, args),
  }


def table(rows):
  cells = []
  for row in rows:
    shown = [
      f"{of['compute_ms']:.0f} + {of['exchange_ms']:.1f} ({of['efficiency']:.0%})"
      for of in row["estimate"].values()
    ]
    size = f"{sum(row['bytes'].values()) / 1e6:.1f}"
    memory = f"{row['temporaries_of_a_device'] / 2**30:.1f}"
    cells.append((row["stage"], row["devices"], sum(row["collectives"].values()), size, memory, *shown))
  return console.format_table(
    ("stage", "devices", "collectives", "MB a step", "GiB", *(f"{name}, ms" for name in CHIPS)), cells
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--devices", default="8,64,512", help="joined by commas")
  parser.add_argument("--stages", default=",".join(STAGES), help="joined by commas")
  parser.add_argument("--images", type=int, default=256, help="a device and step")
  parser.add_argument("--utilization", type=float, default=0.4, help="of a chip's peak while it computes")
  parser.add_argument("--latency", type=float, default=10e-6, help="seconds of each collective")
  parser.add_argument("--out", type=Path, help="a JSON file, written after each row")
  args = parser.parse_args()
  counts, rows = [int(n) for n in args.devices.split(",")], []
  jax.config.update("jax_num_cpu_devices", max(counts))
  devices = jax.devices()
  for kind in args.stages.split(","):
    for count in counts:
      rows.append(measure(kind, count, devices, args))
      console.log(json.dumps(rows[-1]))
      if args.out:
        settings = {"images": args.images, "utilization": args.utilization, "latency": args.latency}
        about = {"settings": settings, "chips": {name: chip._asdict() for name, chip in CHIPS.items()}}
        write_json(args.out, {"rows": rows, **about, **environment(devices[:1])})
  console.log(table(rows))


if __name__ == "__main__":
  main()
