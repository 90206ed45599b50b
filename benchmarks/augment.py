"""Milliseconds of each view, and of the train step that contains one.

  python benchmarks/augment.py [--views=autoaugment,randaugment] [--batch_size=128] [--out=FILE]

Views and step (KD, batch 128, the survey's pair) run on the same devices: on a CPU one virtual device per core, as in a
run. Calls alternate; the result is the median over --repeats rounds. The first call of each is timed separately: it
includes compilation, of views also tracing.
"""

import argparse
import functools
import json
from pathlib import Path
import statistics
import time

import jax

from smskd_jax import data
from smskd_jax.config import experiment, method, network, resolve, stage
from smskd_jax.data.views import VIEWS, make_view
from smskd_jax.engine.plan import make_plans
from smskd_jax.models import introspection
from smskd_jax.runtime import parallel
from smskd_jax.runtime.workdir import environment
from smskd_jax.training import initialization
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen

TEACHER_AND_STUDENT = ("survey_resnet26", "survey_resnet8")
CHAINS = ("crop_flip+randaugment+cutout", "crop_flip+fixmatch")


def make_step(teacher, student, dataset, batch, devices):
  """Returns a function that takes one train step with crop and flip, on its own state."""
  size = len(batch.label)
  common = {"batch_size": size}
  config = experiment(
    data={"source": dataset.name},
    networks={"teacher": network(teacher), "student": network(student)},
    stages=(
      stage("teacher", **common),
      stage("student", teachers=("teacher",), methods=(method("kd", weight=0.5),), **common),
    ),
  )
  plan = make_plans(resolve(config), dataset)[1]
  image, key = introspection.image_spec(dataset.image_shape), jax.random.key(0)
  fresh = functools.partial(initialization.init_variables, image=image)
  teachers = tuple(fresh(t, jax.random.key(1)) for t in plan.stage.teachers)
  frozen = parallel.replicate(Frozen(key, teachers, None), devices)
  variables = fresh(plan.stage.student, key)
  state = parallel.replicate(
    initialization.init_state(plan.stage, key, variables, teachers, image, dataset.train.label), devices
  )
  compiled = parallel.compile_step(make_train_step(plan.stage, parallel.AXIS), devices)
  split = jax.device_put(parallel.shard(batch, devices))

  def step():
    nonlocal state
    state, metrics = compiled(state, frozen, split)
    jax.block_until_ready((state, metrics))

  return step


def make_call(name, batch, devices):
  """Returns a function that computes one batch of a view."""
  view = make_view(name)
  compiled = parallel.compile_predict(lambda key, part: view(key, part.image, part.index), devices)
  split, key = jax.device_put((parallel.shard(batch, devices), jax.random.key(0)))
  return lambda: jax.block_until_ready(compiled(key, split))


def seconds(call):
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--folder", default="", help="data.folder")
  parser.add_argument("--views", default=",".join((*VIEWS, *CHAINS)), help="names, joined by commas")
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--repeats", type=int, default=15)
  parser.add_argument("--out", type=Path, help="a JSON file for the result")
  args = parser.parse_args()
  devices = parallel.select_devices([args.batch_size])
  dataset = data.load(args.data, folder=args.folder)
  train = dataset.train
  index = jax.numpy.arange(args.batch_size)
  batch = Batch(train.image[: args.batch_size], train.label[: args.batch_size], index)
  teacher, student = TEACHER_AND_STUDENT
  calls = {"step": make_step(teacher, student, dataset, batch, devices)}
  calls |= {name: make_call(name, batch, devices) for name in args.views.split(",")}
  first = {name: seconds(call) for name, call in calls.items()}
  rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(args.repeats)]
  median = {name: statistics.median(r[name] for r in rounds) for name in calls}
  result = {
    "data": args.data,
    "pair": f"{teacher} -> {student}",
    "batch_size": args.batch_size,
    "repeats": args.repeats,
    "step": {"milliseconds": round(1e3 * median["step"], 2), "first_call_seconds": round(first["step"], 2)},
    "views": {
      name: {
        "milliseconds": round(1e3 * median[name], 3),
        "fraction_of_step": round(median[name] / median["step"], 4),
        "first_call_seconds": round(first[name], 2),
      }
      for name in calls
      if name != "step"
    },
    **environment(devices),
  }
  print(json.dumps(result, indent=2))
  if args.out:
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
