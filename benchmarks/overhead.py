"""The share of a run's wall time that is not the compiled step: data, metrics, checkpoints, progress bar.

  python benchmarks/overhead.py [--steps=60] [--model=resnet20,resnet8] [--batch_size=128]

Trains one KD stage of configs/smskd.py (resnet20 -> resnet8, batch 128) on `cifar10` twice in the same process:
through the loop, as a run does, with checkpoints and metrics; and by calling the same compiled step on batches that lie
on the devices already. The two are taken in turns, several times; the ratio of the medians is what counts.
Evaluation is left out on both sides: it is a choice of the config.
"""

import argparse
import functools
import json
from pathlib import Path
import statistics
import tempfile
import time

import jax

from smskd_jax import data
from smskd_jax.config import experiment, method, network, resolve, stage
from smskd_jax.engine.plan import make_plans
from smskd_jax.engine.progress import StageProgress
from smskd_jax.engine.summary import RunEstimate
from smskd_jax.models import introspection
from smskd_jax.runtime import checkpoint, clock, parallel, signals
from smskd_jax.runtime.workdir import environment
from smskd_jax.runtime.writer import MetricsWriter
from smskd_jax.training import batches, initialization, loop
from smskd_jax.training.loop import SingleTrainer
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Frozen


def make_plan(args):
  config = experiment(
    data={"source": args.data},
    networks={"teacher": network(args.teacher), "student": network(args.student)},
    stages=(
      stage("teacher", batch_size=args.batch_size),
      stage(
        "student", teachers=("teacher",), methods=(method("kd", weight=0.9),), batch_size=args.batch_size
      ),
    ),
    log_every_steps=50,
  )
  devices = parallel.select_devices([args.batch_size])
  dataset = data.load(args.data)
  return make_plans(resolve(config), dataset)[1], dataset, devices


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--teacher", default="resnet20")
  parser.add_argument("--student", default="resnet8")
  parser.add_argument("--batch_size", type=int, default=128)
  parser.add_argument("--steps", type=int, default=60)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--out", type=Path, help="a JSON file for the result")
  args = parser.parse_args()
  plan, dataset, devices = make_plan(args)
  # One checkpoint a round, which is more often than the default of one in 500 steps.
  budget = plan.loop_config._replace(
    epochs=1, steps_per_epoch=args.steps, checkpoint_every_steps=args.steps // 2
  )
  drawing = plan.input_spec._replace(epochs=1, steps_per_epoch=args.steps)
  image, key = introspection.image_spec(dataset.image_shape), jax.random.key(0)
  fresh = functools.partial(initialization.init_variables, image=image)
  teachers = tuple(fresh(t, jax.random.key(1)) for t in plan.stage.teachers)
  frozen = parallel.replicate(Frozen(key, teachers, None), devices)
  compiled = parallel.compile_step(make_train_step(plan.stage, parallel.AXIS), devices)
  parallel_compile, parallel.compile_step = parallel.compile_step, lambda step, devices: compiled

  def begin():
    variables = fresh(plan.stage.student, key)
    state = initialization.init_state(plan.stage, key, variables, teachers, image, dataset.train.label)
    return parallel.replicate(state, devices)

  def through_the_loop(folder):
    state, stop = begin(), signals.StopRequest()
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    writer = MetricsWriter(folder / "metrics.jsonl", folder / "events", last_step=-1)
    order = functools.partial(batches.iterate_batches, drawing, key)
    learning = loop.LoopCallbacks(order, lambda step, variables: {}, writer.write, checkpoints, {}, {})
    program = SingleTrainer(plan.stage, devices, state, frozen)
    timer = clock.Clock()
    progress = StageProgress(
      plan._replace(loop_config=budget), 1, timer, RunEstimate([plan], dataset, folder)
    )
    began = time.perf_counter()
    loop.run(program, budget, [learning], progress, stop, timer)
    progress.close()
    seconds = time.perf_counter() - began
    checkpoints.close()
    writer.close()
    return seconds

  def step_alone(on_the_device):
    state = begin()
    jax.block_until_ready(state)
    began = time.perf_counter()
    for batch in on_the_device:
      state, metrics = compiled(state, frozen, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - began

  prepared = jax.device_put([parallel.shard(b, devices) for b in batches.iterate_batches(drawing, key, 0)])
  step_alone(prepared[:3])
  whole, alone = [], []
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory() as folder:
      whole.append(through_the_loop(Path(folder)))
    alone.append(step_alone(prepared))
  parallel.compile_step = parallel_compile
  shares = [1 - a / w for a, w in zip(alone, whole, strict=True)]
  result = {
    "data": args.data,
    "pair": f"{args.teacher} -> {args.student}",
    "batch_size": args.batch_size,
    "steps": args.steps,
    "seconds_through_the_loop": whole,
    "seconds_of_the_step_alone": alone,
    "share_outside_the_step": {"median": statistics.median(shares), "of_each_pair": shares},
    **environment(devices),
  }
  print(json.dumps(result, indent=2))
  if args.out:
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
