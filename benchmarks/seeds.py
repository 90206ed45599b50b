"""What a step of several seeds costs: one after another, one on each device, or all on one as `vmap`.

  python benchmarks/seeds.py [--cases=kd:resnet56:resnet20,...] [--seeds=2] [--out=benchmarks/results/seeds.json]

Cases are those of `benchmarks/step.py`; `--cached` looks the teacher's answers up. Sides:

  in_turn      each seed's batch split over the devices, seed after seed
  one_each     each seed on a device of its own, or as many on each as there are devices too few
  vmap         all seeds on the first device

They take turns; ratios to `in_turn` are taken turn by turn, and below 1 is faster. A case must give the same losses on
all sides before anything is timed.
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
from smskd_jax.runtime import console, parallel
from smskd_jax.runtime import seed_parallel as beside_lib
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.training.loop import SeedParallelTrainer, SeedState, SingleTrainer
from smskd_jax.types import Batch

CASES = "kd:resnet32x4:resnet8x4,smskd:resnet56:resnet20,smskd:resnet56:resnet8"
SIDES = ("in_turn", "one_each", "vmap")


class InTurn:
  """As many programs as there are seeds."""

  def __init__(self, stage, devices, learners):
    copies = [(jax.tree.map(jnp.copy, of.state), jax.tree.map(jnp.asarray, of.frozen)) for of in learners]
    self._programs = [SingleTrainer(stage, devices, *parallel.replicate(pair, devices)) for pair in copies]
    self._programs[1:] = [self._sharing(program) for program in self._programs[1:]]

  def _sharing(self, program):
    """It with what the first has compiled."""
    program._step = self._programs[0]._step
    return program

  def train(self, batches):
    """The losses of a step of every seed."""
    done = [program.train([[batch]]) for program, batch in zip(self._programs, batches, strict=True)]
    return [float(metrics["loss"]) for metrics in jax.device_get(done)]


class AtOnce:
  """One program."""

  def __init__(self, stage, devices, learners):
    self._program = SeedParallelTrainer(stage, devices, learners)

  def train(self, batches):
    """As `InTurn`."""
    metrics = jax.device_get(self._program.train([batches]))
    return [float(of["loss"]) for of in self._program.split_metrics(metrics)]


def sides_of(case, args, dataset, devices, beside):
  plan = step.make_plan(case, "float32" if args.cached else "off", args, dataset)
  rows = [np.arange(i, i + args.batch_size, dtype=np.int32) for i in range(args.seeds)]
  batches = [Batch(dataset.train.image[of], dataset.train.label[of], of) for of in rows]
  state, frozen = step.init_train_state(plan, dataset)
  if args.cached:
    seen = np.arange(args.batch_size + args.seeds)
    image = np.asarray(augment.normalize(dataset.train.image[seen], dataset.mean, dataset.std))
    frozen = step.cache_teacher(plan, frozen, image, dataset)
  learners = [SeedState(state, frozen._replace(key=jax.random.key(i)), (0,)) for i in range(args.seeds)]
  sides = {
    "in_turn": InTurn(plan.stage, devices, learners),
    "one_each": AtOnce(plan.stage, beside[: args.seeds], learners),
    "vmap": AtOnce(plan.stage, beside[:1], learners),
  }
  return sides, batches


def measure(case, args, dataset, devices, beside):
  sides, batches = sides_of(case, args, dataset, devices, beside)
  losses = {name: side.train(batches) for name, side in sides.items()}
  for name, of_side in losses.items():
    if not np.allclose(of_side, losses["in_turn"], rtol=1e-3):
      raise SystemExit(f"{case}: the losses of {name} are {of_side}, of in_turn {losses['in_turn']}")
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
  def shown(one):
    return f"{one['milliseconds_of_a_seed']:.1f} ({one['ratio']:.2f})"

  cells = [(row["case"], row["image_size"] or "", *(shown(row[name]) for name in SIDES)) for row in rows]
  return console.format_table(("case", "pixels", *SIDES), cells)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cases", default=CASES, help="joined by commas")
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--seeds", type=int, default=2)
  parser.add_argument("--cached", action="store_true", help="the teacher's answers are kept")
  parser.add_argument("--steps", type=int, default=2, help="of a turn")
  parser.add_argument("--repeats", type=int, default=7, help="turns of each side")
  parser.add_argument("--out", type=Path, help="a JSON file, to which the rows are added")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size], num_seeds=args.seeds)
  beside = beside_lib.select_seed_devices(devices)
  if args.seeds > len(beside) and args.seeds % len(beside):
    parser.error(f"--seeds: {args.seeds} do not divide over {len(beside)} devices")
  dataset = data.load(args.data, image_size=args.image_size)
  rows = [measure(case, args, dataset, devices, beside) for case in args.cases.split(",")]
  console.log(f"milliseconds a step of a seed (ratio to in_turn)\n\n{table(rows)}")
  if args.out:
    before = json.loads(args.out.read_text())["steps"] if args.out.exists() else []
    write_json(args.out, {"steps": before + rows, **environment(devices)})


if __name__ == "__main__":
  main()
