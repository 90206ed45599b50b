"""Runs one stage: batches to the compiled program, metrics, evaluation, checkpoints, progress.

It trains one learner, or several that differ in their seed; each has batches, metrics and checkpoints of its own. All
that happens beside the step happens at steps that the config alone decides, and nothing but the state carries over from
one to the next: an interrupted stage, continued from a checkpoint, is the same stage.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple, Protocol

import jax

from smskd_jax.runtime import checkpoint, clock, history, parallel, signals
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.trainer import SeedBatches, Trainer
from smskd_jax.training.window import MetricAccumulator
from smskd_jax.types import Batch


class LoopConfig(NamedTuple):
  """How long a stage trains and when it looks up."""

  epochs: int
  batch_size: int  # images of a step, with and without labels
  steps_per_epoch: int
  evaluate_every_epochs: int
  checkpoint_every_steps: int
  log_every_steps: int
  probe_every_steps: int = 0  # 0: never
  steps_per_call: int = 0  # as one program; 0: as many as suit the devices
  first_step: int = 0  # the state's count of steps at the beginning: not 0 where the stage continues another

  @property
  def num_steps(self) -> int:
    """Of the whole stage."""
    return self.epochs * self.steps_per_epoch

  def should_log(self, step: int) -> bool:
    """Whether training metrics are written after so many steps."""
    return step % self.log_every_steps == 0 or step % self.steps_per_epoch == 0

  def should_probe(self, step: int) -> bool:
    """Whether it is looked at, before this step, what pulls on the learner."""
    return bool(self.probe_every_steps) and (step - 1) % self.probe_every_steps == 0

  def should_evaluate(self, step: int) -> bool:
    """Whether the learner is evaluated after so many steps: at epochs' ends, and always at the last."""
    epoch, within = divmod(step, self.steps_per_epoch)
    return within == 0 and (epoch % self.evaluate_every_epochs == 0 or step == self.num_steps)

  def should_checkpoint(self, step: int) -> bool:
    """Whether a checkpoint is made after so many steps."""
    return step % self.checkpoint_every_steps == 0 and step != self.num_steps

  def has_event(self, step: int) -> bool:
    """Whether anything happens between this step and the next."""
    return (
      self.should_log(step)
      or self.should_evaluate(step)
      or self.should_checkpoint(step)
      or self.should_probe(step + 1)
    )


class LoopCallbacks(NamedTuple):
  """What the loop calls for a learner, and does not know."""

  batches: Callable[[int], Iterable[Batch]]  # the batches from a step on, on the host
  evaluate: Callable[[int, Any], dict[str, float]]  # (steps done, the learner's variables) -> numbers by name
  write_metrics: Callable[[dict[str, Any]], None]  # a line of metrics
  checkpoints: checkpoint.Checkpoints | history.History
  checkpoint_metadata: dict[str, Any]  # of the checkpoint that its state comes from; {} for a new state
  previous_seconds: dict[str, float]  # spent on the stage before this call of `run`, by phase


class Progress(Protocol):
  """Events of the loop, for a console."""

  def compiling(self) -> None:
    """The next call compiles a program of the training step."""

  def trained(self, step: int, steps: int, *, compiled: bool) -> None:
    """`steps` more steps are done, `step` in all; `compiled`: their program was compiled just now."""

  def evaluated(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
    """Every learner was evaluated; `lines` are their metrics as written to metrics.jsonl."""


def run(
  trainer: Trainer,
  config: LoopConfig,
  callbacks: Sequence[LoopCallbacks],
  progress: Progress,
  stop: signals.StopRequest,
  timer: clock.Clock,
) -> list[dict[str, float]]:
  """Trains from where the program's states are to the end.

  Args:
    program: what is trained.
    budget: how long, and how often what else.
    learners: for each of the program, its batches, evaluation, metrics and checkpoints.
    progress: gets every event that a console shows.
    stop: becomes true when the run is asked to end.
    timer: counts the seconds of this call by phase.

  Returns:
    The seconds of each learner by phase, over all processes that have trained it: seconds that several learners share
    are split evenly.

  Raises:
    window.NonFinite: a term of the loss went bad. The last checkpoint was made before.
    Interrupted: the run was asked to stop. The states are saved.
  """
  at_once = parallel.steps_per_call(trainer.devices, config.steps_per_call)
  window = MetricAccumulator(
    [of.checkpoint_metadata.get("window") for of in callbacks], trainer.split_metrics
  )
  step = int(trainer.state(0).step) - config.first_step
  batches = zip(*(of.batches(step) for of in callbacks), strict=True)
  train = _CompileTimer(trainer, progress, timer)
  with timer.phase(clock.TRAIN):
    for together in _chunk_steps(config, batches, step, at_once):
      if config.should_probe(step + 1):
        _write_gradient_stats(train, callbacks, together[0], _step_metadata(config, step + 1))
      metrics, compiled = train.train(together)
      window.add(metrics)
      stop.set_unsaved(True)
      step += len(together)
      lines = [_step_metadata(config, step) for _ in callbacks]
      if config.should_log(step):
        lines = [line | means for line, means in zip(lines, window.flush(step), strict=True)]
        for of, line in zip(callbacks, lines, strict=True):
          of.write_metrics(line)
      progress.trained(step, len(together), compiled=compiled)
      if config.should_evaluate(step):
        _evaluate(trainer, callbacks, step, lines, timer)
        progress.evaluated(step, lines)
      stopping = stop.should_stop()  # once: a signal that comes later waits for the next step, and its save
      if config.should_checkpoint(step) or stopping:
        # Fetching first: what is not finite must not replace the last good checkpoint.
        _save(trainer, callbacks, step, window.fetch(step), timer)
      if stopping:
        for of in callbacks:
          of.checkpoints.close()
        raise signals.Interrupted(stop.signum, f"stopped at step {step} of {config.num_steps}")
    jax.block_until_ready(trainer.state(0))
  return [_total_seconds(of, timer, len(callbacks)) for of in callbacks]


class _CompileTimer:
  """A program whose first calls, which compile, are told of and counted apart."""

  def __init__(self, trainer: Trainer, progress: Progress, timer: clock.Clock):
    self.trainer, self._progress, self._timer = trainer, progress, timer
    self._compiled = set[int]()  # numbers of steps of the programs that are compiled; 0: of the probe

  def train(self, batches: Sequence[SeedBatches]) -> tuple[dict[str, jax.Array], bool]:
    """Trains a step on each of `batches`; also returns True if that compiled a program."""
    return self._call(len(batches), lambda: self.trainer.train(batches))

  def gradient_stats(self, batches: SeedBatches) -> dict[str, jax.Array]:
    """The gradient statistics of the next step."""
    return self._call(0, lambda: self.trainer.gradient_stats(batches))[0]

  def _call(self, which: int, call: Callable[[], Any]) -> tuple[Any, bool]:
    if which in self._compiled:
      return call(), False
    self._compiled.add(which)
    self._progress.compiling()
    with self._timer.phase(clock.COMPILE):
      return jax.block_until_ready(call()), True


def _evaluate(
  trainer: Trainer,
  callbacks: Sequence[LoopCallbacks],
  step: int,
  lines: list[dict[str, Any]],
  timer: clock.Clock,
) -> None:
  """Evaluates all learners, writes the metrics and adds them to `lines`."""
  with timer.phase(clock.EVALUATE):
    for i, of in enumerate(callbacks):
      found = of.evaluate(step, stage_lib.student_variables(trainer.state(i)))
      of.write_metrics({"step": step, "epoch": lines[i]["epoch"]} | found)
      lines[i] |= found


def _save(
  trainer: Trainer,
  callbacks: Sequence[LoopCallbacks],
  step: int,
  metrics: list[dict[str, list[float]]],
  timer: clock.Clock,
) -> None:
  with timer.phase(clock.SAVE):
    for i, (of, values) in enumerate(zip(callbacks, metrics, strict=True)):
      note = {"window": values, "seconds_by_phase": _total_seconds(of, timer, len(callbacks))}
      of.checkpoints.save(step, trainer.state(i), note)


def _total_seconds(callbacks: LoopCallbacks, timer: clock.Clock, num_seeds: int) -> dict[str, float]:
  return clock.add_seconds(
    callbacks.previous_seconds, {name: seconds / num_seeds for name, seconds in timer.seconds().items()}
  )


def _write_gradient_stats(
  train: _CompileTimer, callbacks: Sequence[LoopCallbacks], batches: SeedBatches, metadata: dict[str, Any]
) -> None:
  for of, pulls in zip(
    callbacks, train.trainer.split_metrics(jax.device_get(train.gradient_stats(batches))), strict=True
  ):
    of.write_metrics(metadata | {f"train/{name}": float(x) for name, x in sorted(pulls.items())})


def _chunk_steps(
  config: LoopConfig, batches: Iterable[SeedBatches], step: int, steps_per_call: int
) -> Iterator[list[SeedBatches]]:
  """Batches of steps that are one program: `at_once`, or one where something is to happen before so many."""
  batches = iter(batches)
  while step < config.num_steps:
    between = range(step + 1, min(step + steps_per_call, config.num_steps + 1))
    count = (
      1 if step + steps_per_call > config.num_steps or any(map(config.has_event, between)) else steps_per_call
    )
    yield list(itertools.islice(batches, count))
    step += count


def _step_metadata(config: LoopConfig, step: int) -> dict[str, Any]:
  return {"step": step, "epoch": step / config.steps_per_epoch}
