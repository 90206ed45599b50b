"""Fraction of a run's wall time outside the compiled step.

  python benchmarks/overhead.py [--steps=60] [--teacher=resnet20] [--student=resnet8] [--batch_size=128]

Trains one KD stage (resnet20 -> resnet8, batch 128) on `cifar10` twice in one process: through the training loop
with checkpoints and metrics, as a run does; and by calling the compiled step on batches that are on the devices. The
two take turns, several times; the result is the median of the fractions. Neither side evaluates: the config decides how
often a run does.
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


class Overhead:
  """A stage that trains through the loop, or by its compiled step alone; both return seconds."""

  def __init__(self, args):
    self.plan, self.dataset, self.devices = make_plan(args)
    self.key = jax.random.key(0)
    # One checkpoint in each measurement: more often than the default of one in 500 steps.
    self.loop_config = self.plan.loop_config._replace(
      epochs=1, steps_per_epoch=args.steps, checkpoint_every_steps=args.steps // 2
    )
    self.input_spec = self.plan.input_spec._replace(epochs=1, steps_per_epoch=args.steps)
    self.teachers = tuple(self._init(teacher, jax.random.key(1)) for teacher in self.plan.stage.teachers)
    self.frozen = parallel.replicate(Frozen(self.key, self.teachers, None), self.devices)
    self.compiled = parallel.compile_step(make_train_step(self.plan.stage, parallel.AXIS), self.devices)
    host_batches = batches.iterate_batches(self.input_spec, self.key, 0)
    self.device_batches = jax.device_put([parallel.shard(batch, self.devices) for batch in host_batches])

  def _init(self, network, key):
    image = introspection.image_spec(self.dataset.image_shape)
    return initialization.init_variables(network, key, image)

  def _init_state(self):
    stage, image = self.plan.stage, introspection.image_spec(self.dataset.image_shape)
    variables = self._init(stage.student, self.key)
    state = initialization.init_state(
      stage, self.key, variables, self.teachers, image, self.dataset.train.label
    )
    return jax.block_until_ready(parallel.replicate(state, self.devices))

  def run_loop(self, folder):
    """Trains through the loop, with the compiled step of `run_steps`."""
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    writer = MetricsWriter(folder / "metrics.jsonl", folder / "events", last_step=-1)
    order = functools.partial(batches.iterate_batches, self.input_spec, self.key)
    callbacks = loop.LoopCallbacks(order, lambda step, variables: {}, writer.write, checkpoints, {}, {})
    trainer = loop.SingleTrainer(self.plan.stage, self.devices, self._init_state(), self.frozen)
    trainer._step = self.compiled
    timer = clock.Clock()
    plan = self.plan._replace(loop_config=self.loop_config)
    progress = StageProgress(plan, 1, timer, RunEstimate([self.plan], self.dataset, folder))
    began = time.perf_counter()
    loop.run(trainer, self.loop_config, [callbacks], progress, signals.StopRequest(), timer)
    progress.close()
    seconds = time.perf_counter() - began
    checkpoints.close()
    writer.close()
    return seconds

  def run_steps(self, num_steps=None):
    """Trains by the compiled step alone."""
    state = self._init_state()
    began = time.perf_counter()
    for batch in self.device_batches[:num_steps]:
      state, metrics = self.compiled(state, self.frozen, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - began


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
  overhead = Overhead(args)
  overhead.run_steps(3)  # compiles
  loop_seconds, step_seconds = [], []
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory() as folder:
      loop_seconds.append(overhead.run_loop(Path(folder)))
    step_seconds.append(overhead.run_steps())
  fractions = [1 - step / whole for step, whole in zip(step_seconds, loop_seconds, strict=True)]
  result = {
    "data": args.data,
    "pair": f"{args.teacher} -> {args.student}",
    "batch_size": args.batch_size,
    "steps": args.steps,
    "seconds_through_the_loop": loop_seconds,
    "seconds_of_the_step_alone": step_seconds,
    "share_outside_the_step": {"median": statistics.median(fractions), "of_each_pair": fractions},
    **environment(overhead.devices),
  }
  print(json.dumps(result, indent=2))
  if args.out:
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
  main()
