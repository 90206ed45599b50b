"""Time of a training step of several seeds: in turn, on several devices, or by `vmap`.

  python benchmarks/seeds.py [--cases=kd:resnet56:resnet20,...] [--seeds=2] [--out=benchmarks/results/seeds.json]

Cases are those of `benchmarks/step.py`; `--cached` uses cached teacher outputs. Sides:

  in_turn      each seed's batch split over the devices, seed after seed
  one_each     each seed on its own device, or several on each device if there are more seeds
  vmap         all seeds on the first device

The sides take turns; the ratio to `in_turn` is computed for each turn, and below 1 is faster. All sides must give equal
losses before the timing.
"""

import argparse
import json
from pathlib import Path
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import step

from smskd_jax import data
from smskd_jax.data import augment
from smskd_jax.runtime import console, parallel, seed_parallel
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.training.loop import SeedParallelTrainer, SeedState, SingleTrainer
from smskd_jax.types import Batch

CASES = "kd:resnet32x4:resnet8x4,smskd:resnet56:resnet20,smskd:resnet56:resnet8"
SIDES = ("in_turn", "one_each", "vmap")


class InTurn:
  """One trainer for each seed."""

  def __init__(self, stage, devices, seeds):
    copies = [(jax.tree.map(jnp.copy, seed.state), jax.tree.map(jnp.asarray, seed.frozen)) for seed in seeds]
    self._trainers = [SingleTrainer(stage, devices, *parallel.replicate(pair, devices)) for pair in copies]
    for trainer in self._trainers:  # compiles once
      trainer._step = self._trainers[0]._step

  def train(self, batches):
    """Trains one step of every seed and returns the losses."""
    metrics = [trainer.train([[batch]]) for trainer, batch in zip(self._trainers, batches, strict=True)]
    return [float(by_seed["loss"]) for by_seed in jax.device_get(metrics)]


class AtOnce:
  """One trainer for all seeds."""

  def __init__(self, stage, devices, seeds):
    self._trainer = SeedParallelTrainer(stage, devices, seeds)

  def train(self, batches):
    """As `InTurn`."""
    metrics = jax.device_get(self._trainer.train([batches]))
    return [float(by_seed["loss"]) for by_seed in self._trainer.split_metrics(metrics)]


def make_seeds(plan, dataset, count, *, cached=False):
  """(state and frozen inputs, batch) of each seed; all have one teacher."""
  size = plan.loop_config.batch_size
  indices = [np.arange(i, i + size, dtype=np.int32) for i in range(count)]
  batches = [Batch(dataset.train.image[index], dataset.train.label[index], index) for index in indices]
  state, frozen = step.init_train_state(plan, dataset)
  if cached:
    image = augment.normalize(dataset.train.image[: size + count], dataset.mean, dataset.std)
    frozen = step.cache_teacher(plan, frozen, np.asarray(image), dataset)
  return [SeedState(state, frozen._replace(key=jax.random.key(i)), (0,)) for i in range(count)], batches


def make_sides(case, args, dataset, devices, seed_devices):
  plan = step.make_plan(
    case,
    dataset,
    batch_size=args.batch_size,
    cache="float32" if args.cached else "off",
    source=args.data,
    image_size=args.image_size,
  )
  seeds, batches = make_seeds(plan, dataset, args.seeds, cached=args.cached)
  sides = {
    "in_turn": InTurn(plan.stage, devices, seeds),
    "one_each": AtOnce(plan.stage, seed_devices[: args.seeds], seeds),
    "vmap": AtOnce(plan.stage, seed_devices[:1], seeds),
  }
  return sides, batches


def measure(case, args, dataset, devices, seed_devices):
  sides, batches = make_sides(case, args, dataset, devices, seed_devices)
  losses = {name: side.train(batches) for name, side in sides.items()}
  for name, values in losses.items():
    if not np.allclose(values, losses["in_turn"], rtol=1e-3):
      raise SystemExit(f"{case}: the losses of {name} are {values}, of in_turn {losses['in_turn']}")
  turns = {name: [] for name in SIDES}
  for i in range(args.repeats + 1):
    for name, side in sides.items():
      began = time.perf_counter()
      for _ in range(args.steps):
        side.train(batches)
      if i:  # the first warms up
        turns[name].append((time.perf_counter() - began) / args.steps / args.seeds)
  row = {"case": case, "batch_size": args.batch_size, "image_size": args.image_size, "seeds": args.seeds}
  for name, seconds in turns.items():
    ratios = [a / b for a, b in zip(seconds, turns["in_turn"], strict=True)]
    lower, middle, upper = np.percentile(ratios, (25, 50, 75)).tolist()
    median = 1e3 * statistics.median(seconds)
    row[name] = {"milliseconds_of_a_seed": median, "ratio": middle, "quartiles": [lower, upper]}
  return row | {"cached": args.cached}


def table(rows):
  def cell(result):
    return f"{result['milliseconds_of_a_seed']:.1f} ({result['ratio']:.2f})"

  cells = [(row["case"], row["image_size"] or "", *(cell(row[name]) for name in SIDES)) for row in rows]
  return console.format_table(("case", "pixels", *SIDES), cells)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cases", default=CASES, help="joined by commas")
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--seeds", type=int, default=2)
  parser.add_argument("--cached", action="store_true", help="cached teacher outputs")
  parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
  parser.add_argument("--repeats", type=int, default=7, help="timed turns of each side")
  parser.add_argument("--out", type=Path, help="a JSON file, that the rows are added to")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size], num_seeds=args.seeds)
  seed_devices = seed_parallel.select_seed_devices(devices)
  if args.seeds > len(seed_devices) and args.seeds % len(seed_devices):
    parser.error(f"--seeds: {args.seeds} do not divide over {len(seed_devices)} devices")
  dataset = data.load(args.data, image_size=args.image_size)
  rows = [measure(case, args, dataset, devices, seed_devices) for case in args.cases.split(",")]
  console.log(f"milliseconds per step and seed (ratio to in_turn)\n\n{table(rows)}")
  if args.out:
    before = json.loads(args.out.read_text())["steps"] if args.out.exists() else []
    write_json(args.out, {"steps": before + rows, **environment(devices)})


if __name__ == "__main__":
  main()
