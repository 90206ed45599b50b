"""Summary of a run before it trains: data, networks, stages, FLOPs and seconds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
import time
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data.dataset import Dataset, Split
from smskd_jax.engine import training_statistics
from smskd_jax.engine.plan import StagePlan
from smskd_jax.errors import join_names
from smskd_jax.models import introspection
from smskd_jax.runtime import clock, console, distributed, parallel
from smskd_jax.runtime.store import StageEntry
from smskd_jax.training import initialization
from smskd_jax.training.stage import frozen_outputs

UNKNOWN = "unknown until the first steps have run"
TIMING_FLOPS = 1e9  # approximate FLOPs of the forward pass that `timed_speed` measures


class Work(NamedTuple):
  """FLOPs of a stage."""

  train: float  # all training steps
  evaluate: float  # all evaluations, and teacher outputs that are computed before the first step


class Speed(NamedTuple):
  """Measured speed of a machine."""

  train: float  # FLOP/s of training steps
  evaluate: float  # FLOP/s of evaluations
  overhead: float  # seconds of a stage for everything else, mostly compilation

  def seconds(self, work: Work) -> float:
    """Estimated seconds of a stage."""
    return work.train / self.train + work.evaluate / self.evaluate + self.overhead


def step_flops(plan: StagePlan, dataset: Dataset) -> float:
  """FLOPs of a training step. A backward pass counts as two forward passes.

  Frozen networks have none.
  """
  shape = dataset.image_shape
  student = introspection.forward_flops(plan.stage.student, shape)
  teachers = () if plan.stage.view_index_fn else plan.stage.teachers  # cached outputs cost nothing
  frozen = sum(introspection.forward_flops(network, shape) for network in teachers)
  per_image = 3 * student + frozen + (student if plan.stage.reference is not None else 0)
  return per_image * plan.loop_config.batch_size * len(plan.stage.views)


def evaluation_flops(plan: StagePlan, dataset: Dataset) -> float:
  """FLOPs of one evaluation: a forward pass on every test and validation image."""
  images = sum(len(split.label) for split in (dataset.test, dataset.validation) if split is not None)
  return images * introspection.forward_flops(plan.stage.student, dataset.image_shape)


def num_evaluations(plan: StagePlan, step: int = 0) -> int:
  """Number of evaluations after a step."""
  config = plan.loop_config
  epochs = range(step // config.steps_per_epoch + 1, config.epochs + 1)
  return sum(config.should_evaluate(epoch * config.steps_per_epoch) for epoch in epochs)


def stage_work(plan: StagePlan, dataset: Dataset) -> Work:
  """FLOPs of a whole stage."""
  cached = 0.0
  teachers = sum(introspection.forward_flops(network, dataset.image_shape) for network in plan.stage.teachers)
  if plan.stage.view_index_fn:
    images = plan.loop_config.num_steps * plan.loop_config.batch_size * len(plan.stage.views)
    cached = images * teachers
  statistics = training_statistics.num_images(plan) * teachers
  evaluated = (1 + num_evaluations(plan)) * evaluation_flops(plan, dataset)
  return Work(plan.loop_config.num_steps * step_flops(plan, dataset), evaluated + cached + statistics)


def stored_speed(works: Mapping[str, Work], store: Path, devices: parallel.Devices) -> Speed | None:
  """Speed of finished stages that were trained on the same kind and number of devices.

  None if there are none.

  Args:
    works: FLOPs of stages, by their keys.
    store: folder of finished stages.
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
  """Speed of a forward pass of the largest network, measured now.

  It is the estimate before the first run.

  None for several processes: a single process cannot measure their communication.
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
  """(seconds to compile, seconds to run) of a forward pass."""
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
  """Text 'estimated time: 2 min 05 s'; for None, that the time is unknown."""
  return f"estimated time: {UNKNOWN if seconds is None else console.format_duration(seconds)}"


class RunEstimate:
  """Remaining seconds of a run, from measured steps of the current stage; printed once."""

  def __init__(self, plans: Sequence[StagePlan], dataset: Dataset, store: Path, seeds: int = 1):
    """Computes nothing.

    Args:
      plans: stages of one seed.
      dataset: the data set.
      store: folder of finished stages.
      seeds: number of seeds of the run.
    """
    self._plans, self._dataset, self._store, self._seeds = plans, dataset, store, seeds
    self._printed = False

  def stage_seconds(
    self, plan: StagePlan, step: int, step_seconds: float, evaluation_seconds: float
  ) -> float:
    """Remaining seconds of a stage after a step."""
    steps, evaluations = plan.loop_config.num_steps - step, num_evaluations(plan, step)
    return steps * step_seconds + evaluations * evaluation_seconds

  def print_once(
    self,
    plan: StagePlan,
    step: int,
    step_seconds: float,
    evaluation_seconds: float | None,
    overhead: float,
    seeds: int,
  ) -> None:
    """Prints the estimate at the first call.

    Args:
      plan: the current stage.
      step: number of finished steps.
      step_seconds: seconds of one step.
      evaluation_seconds: seconds of one evaluation; None: not measured, estimated by its FLOPs.
      overhead: seconds of the stage before the first step, for compilation and preparation.
      seeds: number of seeds that train at once.
    """
    if self._printed:
      return
    self._printed = True
    train, evaluate = step_flops(plan, self._dataset) / step_seconds, evaluation_flops(plan, self._dataset)
    evaluation_seconds = evaluation_seconds or evaluate / train
    speed = Speed(train, evaluate / evaluation_seconds, overhead)
    later = self._plans[plan.stage_index + 1 :]
    missing = [one for one in later if StageEntry(self._store, one.key).state() != "in the store"]
    stage = self.stage_seconds(plan, step, step_seconds, evaluation_seconds)
    groups = -(-self._seeds // seeds)  # of seeds, one group after another
    seconds = sum(speed.seconds(stage_work(one, self._dataset)) for one in missing)
    run = stage + (groups - 1) * speed.seconds(stage_work(plan, self._dataset)) + groups * seconds
    text = f"{console.format_duration(stage)} for stage {plan.name}"
    text += f", {console.format_duration(run)} for the run" if run > stage else ""
    console.log(f"estimated time left: {text}")


def describe(plans: Sequence[StagePlan], dataset: Dataset, devices: parallel.Devices, store: Path) -> str:
  """Tables of the data, the networks and the stages."""
  sizes = ", ".join(f"{len(split.label):,} {name}" for name, split in _splits(dataset).items())
  shape = "x".join(map(str, dataset.image_shape))
  where = f"{len(devices)} x {devices[0].device_kind}"
  header = ("stage", "network", "methods", "reference", "epochs", "steps", "key", "")
  return "\n\n".join(
    (
      f"{dataset.name}: {sizes} images of {shape} in {len(dataset.class_names)} classes, on {where}"
      f"{missing_classes(dataset)}",
      console.format_table(("network", "parameters", "FLOPs/image"), _network_rows(plans, dataset)),
      console.format_table(header, (_stage_row(plan, store) for plan in plans)) + "\n",
    )
  )


def missing_classes(dataset: Dataset) -> str:
  """One line for each set of images in which classes are missing; '' if none are."""
  lines = []
  for name, split in _splits(dataset).items():
    missing = np.setdiff1d(np.arange(len(dataset.class_names)), split.label)
    if missing.size:
      names = join_names(dataset.class_names[k] for k in missing)
      lines.append(f"\nno {name} images of {missing.size} of the classes: {names}")
  return "".join(lines)


def _splits(dataset: Dataset) -> dict[str, Split]:
  splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
  return {name: split for name, split in splits.items() if split is not None}


# Peak FLOP/s of a chip in bfloat16, from its data sheet.
PEAKS = {"TPU v5e": 197e12, "A100": 312e12, "H100": 989e12}
# Fraction of the peak that estimates assume. Small networks on small images reach less, large ones more.
PEAK_FRACTION = 0.1
MIN_HOURS = 0.1  # estimates of fewer device-hours are not shown


def estimate_cost(
  plans: Sequence[StagePlan], dataset: Dataset, devices: parallel.Devices, store: Path
) -> str:
  """FLOPs of the missing stages, estimated time here, and device-hours on other chips."""
  works = {plan.key: stage_work(plan, dataset) for plan in plans}
  missing = [plan for plan in plans if StageEntry(store, plan.key).state() != "in the store"]
  if not missing:
    return "to train: nothing; all stages are in the store"
  speed = stored_speed(works, store, devices) or timed_speed(missing, dataset, devices)
  seconds = sum(speed.seconds(works[plan.key]) for plan in missing) if speed else None
  here = f"{len(devices)} x {devices[0].device_kind}"
  flops = sum(sum(works[plan.key]) for plan in missing)
  text = f"to train: {console.format_si(flops)}FLOP; {format_estimate(seconds)} on {here}"
  hours = {name: flops / peak / PEAK_FRACTION / 3600 for name, peak in PEAKS.items()}
  if max(hours.values()) >= MIN_HOURS:
    others = ", ".join(f"{value:.2g} of {name}" for name, value in hours.items())
    text += f"; at {PEAK_FRACTION:.0%} of a chip's peak, estimated device-hours: {others}"
  return text


def _network_rows(plans: Sequence[StagePlan], dataset: Dataset) -> Iterator[tuple[str, ...]]:
  networks: dict[str, nn.Module] = {}
  for plan in plans:
    networks |= zip(plan.config["teachers"], plan.stage.teachers, strict=True)
    networks[plan.config["network"]] = plan.stage.student
  for name, network in networks.items():
    parameters = introspection.num_parameters(network, dataset.image_shape)
    yield (
      name,
      f"{parameters:,}",
      console.format_si(introspection.forward_flops(network, dataset.image_shape)),
    )


def _stage_row(plan: StagePlan, store: Path) -> tuple[object, ...]:
  methods = " + ".join(method["name"] for method in plan.config["methods"]) or "-"
  reference = plan.config["reference"]["stage"]
  return (
    plan.name,
    plan.config["network"],
    methods,
    "-" if reference == "none" else reference,
    plan.loop_config.epochs,
    plan.loop_config.num_steps,
    plan.key,
    StageEntry(store, plan.key).state(),
  )
