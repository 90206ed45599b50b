"""Estimates of the seconds of stages, from FLOPs and a speed that was measured on this machine."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
import time
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.data.dataset import Dataset
from smskd_jax.engine.plan import StagePlan
from smskd_jax.models import introspection
from smskd_jax.runtime import clock, console, distributed, parallel
from smskd_jax.runtime.store import StageEntry
from smskd_jax.training import initialization
from smskd_jax.training.stage import frozen_outputs

UNKNOWN = "unknown until the first steps have run"
TIMING_FLOPS = 1e9  # about, of a forward pass that is timed


class Work(NamedTuple):
  """FLOPs of a stage."""

  train: float  # all training steps
  evaluate: float  # all evaluations, and teacher outputs that are computed before the first step


class Speed(NamedTuple):
  """Measured speed of a machine."""

  train: float  # FLOPs a second of training steps
  evaluate: float  # FLOPs a second of evaluations
  overhead: float  # seconds of a stage for all else, most of them for compiling

  def seconds(self, work: Work) -> float:
    """The estimated seconds of a stage."""
    return work.train / self.train + work.evaluate / self.evaluate + self.overhead


def step_flops(plan: StagePlan, dataset: Dataset) -> float:
  """FLOPs of a training step: a backward pass counts as two forward passes; frozen networks have none."""
  shape = dataset.image_shape
  learner = introspection.forward_flops(plan.stage.student, shape)
  run = () if plan.stage.view_index_fn else plan.stage.teachers  # cached outputs cost a step nothing
  frozen = sum(introspection.forward_flops(network, shape) for network in run)
  of_image = 3 * learner + frozen + (learner if plan.stage.reference is not None else 0)
  return of_image * plan.loop_config.batch_size * len(plan.stage.views)


def evaluation_flops(plan: StagePlan, dataset: Dataset) -> float:
  """FLOPs of one evaluation: a forward pass on every held-out image."""
  images = sum(len(split.label) for split in (dataset.test, dataset.validation) if split is not None)
  return images * introspection.forward_flops(plan.stage.student, dataset.image_shape)


def num_evaluations(plan: StagePlan, step: int = 0) -> int:
  """The number of evaluations after a step."""
  budget = plan.loop_config
  ends = range(step // budget.steps_per_epoch + 1, budget.epochs + 1)
  return sum(budget.should_evaluate(epoch * budget.steps_per_epoch) for epoch in ends)


def stage_work(plan: StagePlan, dataset: Dataset) -> Work:
  """FLOPs of a whole stage."""
  cached = 0.0
  if plan.stage.view_index_fn:
    images = plan.loop_config.num_steps * plan.loop_config.batch_size * len(plan.stage.views)
    cached = images * sum(
      introspection.forward_flops(network, dataset.image_shape) for network in plan.stage.teachers
    )
  evaluated = (1 + num_evaluations(plan)) * evaluation_flops(plan, dataset)
  return Work(plan.loop_config.num_steps * step_flops(plan, dataset), evaluated + cached)


def stored_speed(works: Mapping[str, Work], store: Path, devices: parallel.Devices) -> Speed | None:
  """The speed of finished stages that were trained on devices of this kind and number; None where there is none.

  Args:
    works: of stages, by their keys.
    store: where finished stages lie.
    devices: to train on.
  """
  train, evaluate, other, done = 0.0, 0.0, 0.0, []
  for key, work in works.items():
    entry = StageEntry(store, key)
    result = entry.result() if entry.state() == "in the store" else None
    if result is None or "seconds_by_phase" not in result or not _trained_on(entry, devices):
      continue
    seconds = result["seconds_by_phase"]
    train += seconds.get(clock.TRAIN, 0.0)
    evaluate += seconds.get(clock.EVALUATE, 0.0) + seconds.get(clock.CACHE, 0.0)
    other += sum(seconds.get(name, 0.0) for name in (clock.PREPARE, clock.COMPILE, clock.SAVE))
    done.append(work)
  if not train or not evaluate:
    return None
  flops = Work(sum(work.train for work in done), sum(work.evaluate for work in done))
  return Speed(flops.train / train, flops.evaluate / evaluate, other / len(done))


def _trained_on(entry: StageEntry, devices: parallel.Devices) -> bool:
  return entry.metadata().get("devices") == parallel.describe(devices)


# Seconds of a stage for compiling and initialising, relative to compiling a forward pass of its largest network.
# Measured on a CPU: 13 (vgg8), 12 (resnet8), 11 (resnet20), 20 (MobileNetV2), 7 (wrn_16_2).
COMPILE_FACTOR = 12.0


def timed_speed(plans: Iterable[StagePlan], dataset: Dataset, devices: parallel.Devices) -> Speed | None:
  """The speed of a forward pass of the largest network, timed now, as an estimate where nothing has run yet.

  None for several processes: one of them cannot measure their exchange.
  """
  if distributed.process_count() > 1:
    return None
  network = max(plans, key=lambda plan: step_flops(plan, dataset)).stage.student
  flops = introspection.forward_flops(network, dataset.image_shape)
  # Virtual devices of a CPU share its cores.
  count = 1 if devices[0].platform == "cpu" else len(devices)
  images = max(1, min(64, round(TIMING_FLOPS / flops)))
  compiling, seconds = _time_forward(network, (images, *dataset.image_shape))
  rate = count * images * flops / seconds
  return Speed(rate, rate, COMPILE_FACTOR * compiling)


def _time_forward(network: nn.Module, shape: Sequence[int], repeats: int = 3) -> tuple[float, float]:
  """(seconds to compile, seconds to run) a forward pass."""
  image = jnp.zeros(shape, jnp.float32)
  variables = initialization.init_variables(network, jax.random.key(0), image)
  forward = jax.jit(lambda variables, image: frozen_outputs(network, variables, image).logits)
  seconds = []
  for _ in range(1 + repeats):  # the first compiles
    began = time.perf_counter()
    jax.block_until_ready(forward(variables, image))
    seconds.append(time.perf_counter() - began)
  return seconds[0] - min(seconds[1:]), min(seconds[1:])


def format_estimate(seconds: float | None) -> str:
  """'estimated time: 2 min 05 s', or that it is not known."""
  return f"estimated time: {UNKNOWN if seconds is None else console.format_duration(seconds)}"


class RunEstimate:
  """Seconds left of a run, from the measured steps of the stage that trains. Printed once."""

  def __init__(self, plans: Sequence[StagePlan], dataset: Dataset, store: Path, seeds: int = 1):
    """Computes nothing yet.

    Args:
      plans: the stages of one seed.
      dataset: its data.
      store: where finished stages lie.
      seeds: of the run.
    """
    self._plans, self._dataset, self._store, self._seeds = plans, dataset, store, seeds
    self._printed = False

  def stage_seconds(
    self, plan: StagePlan, step: int, step_seconds: float, evaluation_seconds: float
  ) -> float:
    """Seconds left of a stage after a step."""
    return (plan.loop_config.num_steps - step) * step_seconds + num_evaluations(
      plan, step
    ) * evaluation_seconds

  def print_once(
    self,
    plan: StagePlan,
    step: int,
    step_seconds: float,
    evaluation_seconds: float | None,
    overhead: float,
    seeds: int,
  ) -> None:
    """Prints the estimate, the first time.

    Args:
      plan: the stage that trains.
      step: the number of its finished steps.
      step_seconds: of one.
      evaluation_seconds: of one; None where none was measured, and its FLOPs count as those of steps.
      overhead: seconds of the stage before the first step, to compile and to prepare.
      seeds: how many train at once.
    """
    if self._printed:
      return
    self._printed = True
    train, evaluate = step_flops(plan, self._dataset) / step_seconds, evaluation_flops(plan, self._dataset)
    evaluation_seconds = evaluation_seconds or evaluate / train
    speed = Speed(train, evaluate / evaluation_seconds, overhead)
    rest = [
      p
      for p in self._plans[plan.stage_index + 1 :]
      if StageEntry(self._store, p.key).state() != "in the store"
    ]
    stage = self.stage_seconds(plan, step, step_seconds, evaluation_seconds)
    groups = -(-self._seeds // seeds)  # one after another
    later = [speed.seconds(stage_work(p, self._dataset)) for p in rest]
    run = stage + (groups - 1) * speed.seconds(stage_work(plan, self._dataset)) + groups * sum(later)
    words = f"{console.format_duration(stage)} for stage {plan.name}"
    words += f", {console.format_duration(run)} for the run" if run > stage else ""
    console.log(f"estimated time left: {words}")
