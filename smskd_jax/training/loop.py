"""Training loop of a stage: compiled steps, metrics, evaluations, checkpoints, progress.

A loop trains one seed, or several seeds in one program; each seed has its own batches, metrics and checkpoints. The
config alone decides at which steps the loop logs, evaluates and saves, and only the state carries over from step to
step, so that a stage that resumes from a checkpoint is equal to one that was never interrupted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import itertools
import math
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, clock, history, parallel, seed_parallel, signals
from smskd_jax.training.stage import Metrics, Stage, student_variables
from smskd_jax.training.train_step import make_gradient_diagnostics, make_train_step
from smskd_jax.types import Batch, Frozen, TrainState

# Compiled calls that the devices have not finished: enough to hide the host's work, few enough to stop soon.
MAX_IN_FLIGHT = 2

SeedBatches = Sequence[
  Batch
]  # on the host, one for each seed; with several processes, the local part of each


class NonFiniteError(UserError):
  """A term of the loss that is infinite or not a number."""

  def __init__(self, seed_index: int, message: str):
    """Stores the index of the seed among those of the trainer."""
    super().__init__(message)
    self.seed_index = seed_index


class LoopConfig(NamedTuple):
  """Length of a stage, and the steps at which the loop logs, evaluates and saves."""

  epochs: int
  batch_size: int  # images of a step, labeled and unlabeled
  steps_per_epoch: int
  evaluate_every_epochs: int
  checkpoint_every_steps: int
  log_every_steps: int
  probe_every_steps: int = 0  # for gradient diagnostics; 0: never
  steps_per_call: int = 0  # training steps per compiled call; 0: a number that suits the devices
  first_step: int = (
    0  # `TrainState.step` at the stage's beginning: not 0 where the stage continues another stage
  )

  @property
  def num_steps(self) -> int:
    """Steps of the stage."""
    return self.epochs * self.steps_per_epoch

  def should_log(self, step: int) -> bool:
    """True if training metrics are written after `step` steps."""
    return step % self.log_every_steps == 0 or step % self.steps_per_epoch == 0

  def should_probe(self, step: int) -> bool:
    """True if gradient diagnostics run before this step."""
    return bool(self.probe_every_steps) and (step - 1) % self.probe_every_steps == 0

  def should_evaluate(self, step: int) -> bool:
    """True if the network is evaluated after `step` steps; always at the last step."""
    epoch, within = divmod(step, self.steps_per_epoch)
    return within == 0 and (epoch % self.evaluate_every_epochs == 0 or step == self.num_steps)

  def should_checkpoint(self, step: int) -> bool:
    """True if a checkpoint is saved after `step` steps; the last step saves the result."""
    return step % self.checkpoint_every_steps == 0 and step != self.num_steps

  def has_event(self, step: int) -> bool:
    """True if the loop has anything to do between this step and the next."""
    return (
      self.should_log(step)
      or self.should_evaluate(step)
      or self.should_checkpoint(step)
      or self.should_probe(step + 1)
    )


class LoopCallbacks(NamedTuple):
  """Inputs and outputs of the loop for one seed."""

  batches: Callable[[int], Iterable[Batch]]  # (first step) -> batches on the host, from that step on
  evaluate: Callable[[int, Any], dict[str, float]]  # (steps done, student's variables) -> metrics
  write_metrics: Callable[[dict[str, Any]], None]  # writes a line of metrics
  checkpoints: checkpoint.Checkpoints | history.History
  checkpoint_metadata: dict[
    str, Any
  ]  # of the checkpoint that the state was restored from; {} for a new state
  previous_seconds: dict[str, float]  # seconds by phase that earlier runs spent on the stage


class Progress(Protocol):
  """Events of the loop, for the console."""

  def compiling(self) -> None:
    """The next call compiles a training step."""

  def trained(self, step: int, steps: int, *, compiled: bool) -> None:
    """`steps` more steps are done, `step` in all; `compiled` if the call compiled them first."""

  def evaluated(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
    """Every seed was evaluated; `lines` are the metrics as written to metrics.jsonl."""


class Trainer(Protocol):
  """Compiled step and current states of one or more seeds of a stage."""

  num_seeds: int
  devices: parallel.Devices

  def state(self, seed_index: int) -> TrainState:
    """Current state of a seed, on devices. The next call of `train` donates its buffers."""

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """Trains one step on each of `batches`; returns metrics for `split_metrics`."""

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """Gradient diagnostics of the next step, for `split_metrics`."""

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """Metrics of each seed, from metrics on the host: scalars, or [n] for n steps."""


class SingleTrainer:
  """Trainer of one seed, with each batch split over the devices."""

  num_seeds = 1

  def __init__(self, stage: Stage, devices: parallel.Devices, state: TrainState, frozen: Frozen):
    """Takes a state and frozen inputs, replicated on the devices. The first calls compile."""
    self.devices, self._state, self._frozen = devices, state, frozen
    step = make_train_step(stage, parallel.AXIS)
    self._step = parallel.compile_step(step, devices)
    self._steps = parallel.compile_step(parallel.scan_steps(step), devices)
    self._probe = parallel.compile_probe(make_gradient_diagnostics(stage, parallel.AXIS), devices)

  def state(self, seed_index: int) -> TrainState:
    """As `Trainer.state`; replicated on all devices."""
    del seed_index
    return self._state

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """As `Trainer.train`."""
    local = [batch for (batch,) in batches]
    if len(local) == 1:
      sharded = parallel.shard_local(local[0], self.devices)
      self._state, metrics = self._step(self._state, self._frozen, sharded)
    else:
      sharded = parallel.shard_local_steps(local, self.devices)
      self._state, metrics = self._steps(self._state, self._frozen, sharded)
    return metrics

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """As `Trainer.gradient_stats`."""
    return self._probe(self._state, self._frozen, parallel.shard_local(batches[0], self.devices))

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """As `Trainer.split_metrics`."""
    return [metrics]


class SeedState(NamedTuple):
  """State and frozen inputs of one seed among several."""

  state: TrainState
  frozen: Frozen
  teacher_ids: tuple[Any, ...]  # equal ids: equal variables of the teacher


class SeedParallelTrainer:
  """Trainer of several seeds of a stage in one program, without exchange between devices.

  Each seed has its whole batches on one device, which it shares with other seeds by `vmap` where there are more seeds
  than devices.
  """

  def __init__(self, stage: Stage, devices: parallel.Devices, seeds: Sequence[SeedState]):
    """Takes as many seeds as devices, or a multiple. The first calls compile."""
    self.devices, self.num_seeds = devices, len(seeds)
    self._seeds_per_device = len(seeds) // len(devices)
    self._state = self._shard([seed.state for seed in seeds])
    self._frozen, axes = self._shard_frozen(seeds)
    step = make_train_step(stage)
    self._step = parallel.compile_per_device(self._vmap_seeds(step, axes), devices, axes)
    steps = self._vmap_seeds(parallel.scan_steps(step), axes)
    self._steps = parallel.compile_per_device(steps, devices, axes)
    probe = self._vmap_seeds(make_gradient_diagnostics(stage), axes)
    self._probe = parallel.compile_per_device(probe, devices, axes, donate=False)

  def state(self, seed_index: int) -> TrainState:
    """As `Trainer.state`; on the seed's device."""
    device, offset = self._locate(seed_index)
    local = jax.tree.map(lambda x: seed_parallel.local_shard(x, self.devices[device]), self._state)
    return local if offset is None else jax.tree.map(lambda x: x[offset], local)

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """As `Trainer.train`."""
    if len(batches) == 1:
      self._state, metrics = self._step(self._state, self._frozen, self._shard(batches[0]))
    else:
      by_seed = [seed_parallel.stack(steps) for steps in zip(*batches, strict=True)]
      self._state, metrics = self._steps(self._state, self._frozen, self._shard(by_seed))
    return metrics

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """As `Trainer.gradient_stats`."""
    return self._probe(self._state, self._frozen, self._shard(batches))

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """As `Trainer.split_metrics`."""
    split = []
    for seed_index in range(self.num_seeds):
      location = tuple(i for i in self._locate(seed_index) if i is not None)
      split.append({name: values[location] for name, values in metrics.items()})
    return split

  def _locate(self, seed_index: int) -> tuple[int, int | None]:
    """Index of a seed's device, and of the seed on that device; None where it is alone there."""
    device, offset = divmod(seed_index, self._seeds_per_device)
    return device, offset if self._seeds_per_device > 1 else None

  def _vmap_seeds(self, step: Callable[..., Any], axes: Frozen) -> Callable[..., Any]:
    return step if self._seeds_per_device == 1 else jax.vmap(step, in_axes=(0, axes, 0))

  def _shard(self, trees: Sequence[Any]) -> Any:
    """Stacks the trees of all seeds: [devices, ...] or [devices, seeds per device, ...]."""
    shape = (len(self.devices), self._seeds_per_device)[: 2 if self._seeds_per_device > 1 else 1]
    stacked = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), seed_parallel.stack(trees))
    return seed_parallel.shard_seeds(stacked, self.devices)

  def _shard_frozen(self, seeds: Sequence[SeedState]) -> tuple[Frozen, Frozen]:
    """Frozen inputs of all seeds, and their axes of seeds; None for shared inputs."""
    first = seeds[0].frozen
    shared = [len({seed.teacher_ids[i] for seed in seeds}) == 1 for i in range(len(first.teachers))]
    teachers = tuple(
      parallel.replicate(teacher, self.devices)
      if is_shared
      else self._shard([seed.frozen.teachers[i] for seed in seeds])
      for i, (teacher, is_shared) in enumerate(zip(first.teachers, shared, strict=True))
    )
    reference = None if first.reference is None else self._shard([seed.frozen.reference for seed in seeds])
    teacher_axes = tuple(None if is_shared else 0 for is_shared in shared)
    axes = Frozen(0, teacher_axes, None if reference is None else 0)  # type: ignore[arg-type]
    return Frozen(self._shard([seed.frozen.key for seed in seeds]), teachers, reference), axes


def run(
  trainer: Trainer,
  config: LoopConfig,
  callbacks: Sequence[LoopCallbacks],
  progress: Progress,
  stop: signals.StopRequest,
  timer: clock.Clock,
) -> list[dict[str, float]]:
  """Trains from the trainer's states to the end of the stage.

  Args:
    trainer: compiled step and states.
    config: length of the stage, and its events.
    callbacks: for each seed of the trainer, its batches, evaluation, metrics and checkpoints.
    progress: receives the events for the console.
    stop: request to stop, from signals.
    timer: counts the seconds of this call by phase.

  Returns:
    Seconds of each seed by phase, over all runs that trained the stage. Seconds that several seeds share are split
    evenly.

  Raises:
    NonFiniteError: a term of the loss is not finite. The last checkpoint is from before.
    Interrupted: the run was asked to stop. The states are saved.
  """
  steps_per_call = parallel.steps_per_call(trainer.devices, config.steps_per_call)
  metadata = [seed.checkpoint_metadata.get("window") for seed in callbacks]
  accumulator = MetricAccumulator(metadata, trainer.split_metrics)
  step = int(trainer.state(0).step) - config.first_step
  batches = zip(*(seed.batches(step) for seed in callbacks), strict=True)
  timed = _CompileTimer(trainer, progress, timer)
  with timer.phase(clock.TRAIN):
    for chunk in _chunk_steps(config, batches, step, steps_per_call):
      if config.should_probe(step + 1):
        _write_gradient_stats(timed, callbacks, chunk[0], _step_metadata(config, step + 1))
      metrics, compiled = timed.train(chunk)
      accumulator.add(metrics)
      stop.set_unsaved(True)
      step += len(chunk)
      lines = [_step_metadata(config, step) for _ in callbacks]
      if config.should_log(step):
        lines = [line | means for line, means in zip(lines, accumulator.flush(step), strict=True)]
        for seed, line in zip(callbacks, lines, strict=True):
          seed.write_metrics(line)
      progress.trained(step, len(chunk), compiled=compiled)
      if config.should_evaluate(step):
        _evaluate(trainer, callbacks, step, lines, timer)
        progress.evaluated(step, lines)
      # Read once: a signal that comes later waits for the next step and its checkpoint.
      stopping = stop.should_stop()
      if config.should_checkpoint(step) or stopping:
        # Fetches first: a state that is not finite must not replace the last good checkpoint.
        _save(trainer, callbacks, step, accumulator.fetch(step), timer)
      if stopping:
        for seed in callbacks:
          seed.checkpoints.close()
        raise signals.Interrupted(stop.signum, f"stopped at step {step} of {config.num_steps}")
    jax.block_until_ready(trainer.state(0))
  return [_total_seconds(seed, timer, len(callbacks)) for seed in callbacks]


class MetricAccumulator:
  """Training metrics of the steps since the last line of metrics.jsonl.

  Metrics stay on the devices until they are needed, so that the next steps need not wait. A checkpoint stores the
  fetched metrics, so that a resumed run writes equal lines.
  """

  def __init__(
    self,
    restored: Sequence[dict[str, Any] | None] = (None,),
    split: Callable[[Metrics], list[Metrics]] = lambda metrics: [metrics],
  ):
    """Takes each seed's metrics from a checkpoint, or None, and `Trainer.split_metrics`."""
    self._fetched = [{name: list(v) for name, v in (values or {}).items()} for values in restored]
    self._split = split
    self._pending: list[Metrics] = []

  def add(self, metrics: Metrics) -> None:
    """Adds the metrics of a call; waits for the call before those in flight."""
    self._pending.append(metrics)
    if len(self._pending) > MAX_IN_FLIGHT:
      jax.block_until_ready(self._pending[-1 - MAX_IN_FLIGHT])

  def fetch(self, step: int) -> list[dict[str, list[float]]]:
    """Values of each metric for each seed, the last of them of the step before `step`.

    Raises:
      NonFiniteError: a value is not finite.
    """
    calls = [self._split(metrics) for metrics in jax.device_get(self._pending)]
    for seed_index, fetched in enumerate(self._fetched):
      steps = [metrics for call in calls for metrics in _per_step(call[seed_index])]
      for i, metrics in enumerate(steps, start=step - len(steps) + 1):
        for name in sorted(metrics, key=_is_total):
          value = float(metrics[name])
          if not math.isfinite(value):
            raise NonFiniteError(
              seed_index, f"step {i}: {name} is {value}; lower the learning rate or the weight of that term"
            )
          fetched.setdefault(name, []).append(value)
    self._pending = []
    # Copies: checkpoints are written in the background.
    return [{name: list(values) for name, values in fetched.items()} for fetched in self._fetched]

  def flush(self, step: int) -> list[dict[str, float]]:
    """Means of the metrics of each seed, by 'train/NAME'; clears the accumulator."""
    fetched = self.fetch(step)
    self._fetched = [{} for _ in fetched]
    return [
      {f"train/{name}": math.fsum(v) / len(v) for name, v in sorted(values.items())} for values in fetched
    ]


def _is_total(name: str) -> bool:
  """True for metrics that any bad term spoils: errors name the term first."""
  return name in ("loss", "gradient_norm")


def _per_step(metrics: Metrics) -> list[dict[str, Any]]:
  """Metrics of each step of a call, from scalars or arrays [steps]."""
  count = max((np.size(value) for value in metrics.values()), default=0)
  return [{name: np.reshape(value, -1)[i] for name, value in metrics.items()} for i in range(count)]


class _CompileTimer:
  """A trainer whose first calls, which compile, are announced and timed separately."""

  def __init__(self, trainer: Trainer, progress: Progress, timer: clock.Clock):
    self.trainer, self._progress, self._timer = trainer, progress, timer
    self._compiled = set[int]()  # steps per call of compiled programs; 0: the gradient diagnostics

  def train(self, batches: Sequence[SeedBatches]) -> tuple[Metrics, bool]:
    """As `Trainer.train`; also returns True if the call compiled."""
    return self._call(len(batches), lambda: self.trainer.train(batches))

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """As `Trainer.gradient_stats`."""
    return self._call(0, lambda: self.trainer.gradient_stats(batches))[0]

  def _call(self, program: int, call: Callable[[], Metrics]) -> tuple[Metrics, bool]:
    if program in self._compiled:
      return call(), False
    self._compiled.add(program)
    self._progress.compiling()
    with self._timer.phase(clock.COMPILE):
      return jax.block_until_ready(call()), True


def _chunk_steps(
  config: LoopConfig, batches: Iterable[SeedBatches], step: int, steps_per_call: int
) -> Iterator[list[SeedBatches]]:
  """Batches of each compiled call: `steps_per_call`, or one where an event comes earlier."""
  batches = iter(batches)
  while step < config.num_steps:
    end = step + steps_per_call
    one = end > config.num_steps or any(map(config.has_event, range(step + 1, end)))
    count = 1 if one else steps_per_call
    yield list(itertools.islice(batches, count))
    step += count


def _evaluate(
  trainer: Trainer,
  callbacks: Sequence[LoopCallbacks],
  step: int,
  lines: list[dict[str, Any]],
  timer: clock.Clock,
) -> None:
  """Evaluates all seeds, writes the metrics and adds them to `lines`."""
  with timer.phase(clock.EVALUATE):
    for i, seed in enumerate(callbacks):
      metrics = seed.evaluate(step, student_variables(trainer.state(i)))
      seed.write_metrics({"step": step, "epoch": lines[i]["epoch"]} | metrics)
      lines[i] |= metrics


def _save(
  trainer: Trainer,
  callbacks: Sequence[LoopCallbacks],
  step: int,
  metrics: list[dict[str, list[float]]],
  timer: clock.Clock,
) -> None:
  with timer.phase(clock.SAVE):
    for i, (seed, values) in enumerate(zip(callbacks, metrics, strict=True)):
      metadata = {"window": values, "seconds_by_phase": _total_seconds(seed, timer, len(callbacks))}
      seed.checkpoints.save(step, trainer.state(i), metadata)


def _write_gradient_stats(
  timed: _CompileTimer, callbacks: Sequence[LoopCallbacks], batches: SeedBatches, metadata: dict[str, Any]
) -> None:
  stats = timed.trainer.split_metrics(jax.device_get(timed.gradient_stats(batches)))
  for seed, values in zip(callbacks, stats, strict=True):
    seed.write_metrics(metadata | {f"train/{name}": float(x) for name, x in sorted(values.items())})


def _step_metadata(config: LoopConfig, step: int) -> dict[str, Any]:
  return {"step": step, "epoch": step / config.steps_per_epoch}


def _total_seconds(callbacks: LoopCallbacks, timer: clock.Clock, num_seeds: int) -> dict[str, float]:
  seconds = {name: seconds / num_seeds for name, seconds in timer.seconds().items()}
  return clock.add_seconds(callbacks.previous_seconds, seconds)
