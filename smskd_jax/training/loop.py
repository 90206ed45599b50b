"""Runs one stage: batches to the compiled program, metrics, evaluation, checkpoints, progress.

It trains one learner, or several that differ in their seed; each has batches, metrics and checkpoints of its own. All
that happens beside the step happens at steps that the config alone decides, and nothing but the state carries over from
one to the next: an interrupted stage, continued from a checkpoint, is the same stage.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import itertools
from typing import Any, NamedTuple, Protocol

import jax

from smskd_jax.runtime import checkpoint, clock, history, interrupt, parallel
from smskd_jax.state import Batch
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.program import Batches, Program
from smskd_jax.training.window import Window


class Budget(NamedTuple):
  """How long a stage trains and when it looks up."""

  epochs: int
  batch_size: int  # images of a step, with and without labels
  steps_per_epoch: int
  evaluate_every_epochs: int
  checkpoint_every_steps: int
  log_every_steps: int
  probe_every_steps: int = 0  # 0: never
  steps_at_once: int = 0  # as one program; 0: as many as suit the devices
  first_step: int = 0  # the state's count of steps at the beginning: not 0 where the stage continues another

  @property
  def steps(self) -> int:
    """Of the whole stage."""
    return self.epochs * self.steps_per_epoch

  def logs(self, step: int) -> bool:
    """Whether training metrics are written after so many steps."""
    return step % self.log_every_steps == 0 or step % self.steps_per_epoch == 0

  def probes(self, step: int) -> bool:
    """Whether it is looked at, before this step, what pulls on the learner."""
    return bool(self.probe_every_steps) and (step - 1) % self.probe_every_steps == 0

  def evaluates(self, step: int) -> bool:
    """Whether the learner is evaluated after so many steps: at epochs' ends, and always at the last."""
    epoch, within = divmod(step, self.steps_per_epoch)
    return within == 0 and (epoch % self.evaluate_every_epochs == 0 or step == self.steps)

  def saves(self, step: int) -> bool:
    """Whether a checkpoint is made after so many steps."""
    return step % self.checkpoint_every_steps == 0 and step != self.steps

  def looks_up(self, step: int) -> bool:
    """Whether anything happens between this step and the next."""
    return self.logs(step) or self.evaluates(step) or self.saves(step) or self.probes(step + 1)


class Learning(NamedTuple):
  """What the loop calls for a learner, and does not know."""

  batches: Callable[[int], Iterable[Batch]]  # the batches from a step on, on the host
  evaluate: Callable[[int, Any], dict[str, float]]  # (steps done, the learner's variables) -> numbers by name
  write: Callable[[dict[str, Any]], None]  # a line of metrics
  checkpoints: checkpoint.Checkpoints | history.History
  note: dict[str, Any]  # of the checkpoint that its state comes from; {} for a new state
  seconds: dict[str, float]  # spent on the stage before this call of `run`, by phase


class Progress(Protocol):
  """Events of the loop, for a console."""

  def compiling(self) -> None:
    """The next call compiles a program of the training step."""

  def trained(self, step: int, steps: int, *, compiled: bool) -> None:
    """`steps` more steps are done, `step` in all; `compiled`: their program was compiled just now."""

  def evaluated(self, step: int, lines: Sequence[Mapping[str, float]]) -> None:
    """Every learner was evaluated; `lines` are their metrics as written to metrics.jsonl."""


def run(
  program: Program,
  budget: Budget,
  learners: Sequence[Learning],
  progress: Progress,
  stop: interrupt.Interrupt,
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
  at_once = parallel.steps_at_once(program.devices, budget.steps_at_once)
  window = Window([of.note.get("window") for of in learners], program.apart)
  step = int(program.state(0).step) - budget.first_step
  batches = zip(*(of.batches(step) for of in learners), strict=True)
  train = _Compiling(program, progress, timer)
  with timer.phase(clock.TRAIN):
    for together in _together(budget, batches, step, at_once):
      if budget.probes(step + 1):
        _write_pulls(train, learners, together[0], _stamp(budget, step + 1))
      metrics, compiled = train.steps(together)
      window.add(metrics)
      stop.set_unsaved(True)
      step += len(together)
      lines = [_stamp(budget, step) for _ in learners]
      if budget.logs(step):
        lines = [line | means for line, means in zip(lines, window.means(step), strict=True)]
        for of, line in zip(learners, lines, strict=True):
          of.write(line)
      progress.trained(step, len(together), compiled=compiled)
      if budget.evaluates(step):
        _evaluate(program, learners, step, lines, timer)
        progress.evaluated(step, lines)
      stopping = stop.reached()  # once: a signal that comes later waits for the next step, and its save
      if budget.saves(step) or stopping:
        # Fetching first: what is not finite must not replace the last good checkpoint.
        _save(program, learners, step, window.fetch(step), timer)
      if stopping:
        for of in learners:
          of.checkpoints.close()
        raise interrupt.Interrupted(stop.signum, f"stopped at step {step} of {budget.steps}")
    jax.block_until_ready(program.state(0))
  return [_spent(of, timer, len(learners)) for of in learners]


class _Compiling:
  """A program whose first calls, which compile, are told of and counted apart."""

  def __init__(self, program: Program, progress: Progress, timer: clock.Clock):
    self.program, self._progress, self._timer = program, progress, timer
    self._compiled = set[int]()  # numbers of steps of the programs that are compiled; 0: of the probe

  def steps(self, batches: Sequence[Batches]) -> tuple[dict[str, jax.Array], bool]:
    """Trains a step on each of `batches`; also returns True if that compiled a program."""
    return self._call(len(batches), lambda: self.program.train(batches))

  def probe(self, batches: Batches) -> dict[str, jax.Array]:
    """The gradient statistics of the next step."""
    return self._call(0, lambda: self.program.probe(batches))[0]

  def _call(self, which: int, call: Callable[[], Any]) -> tuple[Any, bool]:
    if which in self._compiled:
      return call(), False
    self._compiled.add(which)
    self._progress.compiling()
    with self._timer.phase(clock.COMPILE):
      return jax.block_until_ready(call()), True


def _evaluate(
  program: Program, learners: Sequence[Learning], step: int, lines: list[dict[str, Any]], timer: clock.Clock
) -> None:
  """Evaluates all learners, writes the metrics and adds them to `lines`."""
  with timer.phase(clock.EVALUATE):
    for i, of in enumerate(learners):
      found = of.evaluate(step, stage_lib.learner_variables(program.state(i)))
      of.write({"step": step, "epoch": lines[i]["epoch"]} | found)
      lines[i] |= found


def _save(
  program: Program,
  learners: Sequence[Learning],
  step: int,
  windows: list[dict[str, list[float]]],
  timer: clock.Clock,
) -> None:
  with timer.phase(clock.SAVE):
    for i, (of, values) in enumerate(zip(learners, windows, strict=True)):
      note = {"window": values, "seconds_by_phase": _spent(of, timer, len(learners))}
      of.checkpoints.save(step, program.state(i), note)


def _spent(of: Learning, timer: clock.Clock, learners: int) -> dict[str, float]:
  return clock.total(of.seconds, {name: seconds / learners for name, seconds in timer.seconds().items()})


def _write_pulls(
  train: _Compiling, learners: Sequence[Learning], batches: Batches, stamp: dict[str, Any]
) -> None:
  for of, pulls in zip(learners, train.program.apart(jax.device_get(train.probe(batches))), strict=True):
    of.write(stamp | {f"train/{name}": float(x) for name, x in sorted(pulls.items())})


def _together(budget: Budget, batches: Iterable[Batches], step: int, at_once: int) -> Iterator[list[Batches]]:
  """Batches of steps that are one program: `at_once`, or one where something is to happen before so many."""
  batches = iter(batches)
  while step < budget.steps:
    between = range(step + 1, min(step + at_once, budget.steps + 1))
    count = 1 if step + at_once > budget.steps or any(map(budget.looks_up, between)) else at_once
    yield list(itertools.islice(batches, count))
    step += count


def _stamp(budget: Budget, step: int) -> dict[str, Any]:
  return {"step": step, "epoch": step / budget.steps_per_epoch}
