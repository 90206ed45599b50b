"""Runs one stage: batches to the compiled program, metrics, evaluation, checkpoints, progress.

It trains one learner, or several that differ in their seed; each has batches, metrics and checkpoints of its own. All
that happens beside the step happens at steps that the config alone decides, and nothing but the state carries over from
one to the next: an interrupted stage, continued from a checkpoint, is the same stage.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import itertools
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, interrupt, parallel
from smskd_jax.state import Batch
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.program import Batches, Program

# Programs handed to the devices and not waited for: enough to hide the host, few enough to stop soon.
IN_FLIGHT = 2


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
  checkpoints: checkpoint.Checkpoints
  note: dict[str, Any]  # of the checkpoint that its state comes from; {} for a new state


class NonFinite(UserError):
  """A term of the loss has become infinite or not a number."""

  def __init__(self, learner: int, message: str):
    """Notes which learner's it was."""
    super().__init__(message)
    self.learner = learner


class Window:
  """The training metrics of the steps since the last lines were written.

  They stay on the device until they are asked for, so that the next steps need not wait. What was fetched goes into a
  checkpoint's note: a continued run writes the same line.
  """

  def __init__(
    self,
    notes: Sequence[dict[str, Any] | None] = (None,),
    apart: Callable[[dict[str, Any]], list[dict[str, Any]]] = lambda metrics: [metrics],
  ):
    """Takes what each learner's checkpoint's note tells, if anything, and what tells the learners' metrics apart."""
    self._fetched = [{name: list(v) for name, v in (note or {}).items()} for note in notes]
    self._apart = apart
    self._pending: list[dict[str, jax.Array]] = []

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a program; waits for those of the program before the ones in flight."""
    self._pending.append(metrics)
    if len(self._pending) > IN_FLIGHT:
      jax.block_until_ready(self._pending[-1 - IN_FLIGHT])

  def fetch(self, step: int) -> list[dict[str, list[float]]]:
    """All values of each learner by name, the last of them of the step before `step`.

    Raises:
      NonFinite: one is not a finite number.
    """
    programs = [self._apart(metrics) for metrics in jax.device_get(self._pending)]
    for learner, fetched in enumerate(self._fetched):
      steps = [one for of_program in programs for one in _each(of_program[learner])]
      for i, metrics in enumerate(steps):
        at = step - len(steps) + i + 1
        # The cause before its effects.
        for name in sorted(metrics, key=lambda name: name in ("loss", "gradient_norm")):
          value = float(metrics[name])
          if not math.isfinite(value):
            raise NonFinite(
              learner,
              f"step {at}: {name} is {value}; lower the learning rate or the weight of that term",
            )
          fetched.setdefault(name, []).append(value)
    self._pending = []
    # Copies: a save goes on in the background.
    return [{name: list(values) for name, values in fetched.items()} for fetched in self._fetched]

  def means(self, step: int) -> list[dict[str, float]]:
    """The mean of each metric of each learner, by 'train/NAME'; begins anew."""
    fetched = self.fetch(step)
    self._fetched = [{} for _ in fetched]
    return [
      {f"train/{name}": math.fsum(v) / len(v) for name, v in sorted(values.items())} for values in fetched
    ]


def run(
  program: Program,
  budget: Budget,
  learners: Sequence[Learning],
  progress: Callable[[int, int], None],
  stop: interrupt.Interrupt,
) -> list[float]:
  """Trains from where the program's states are to the end.

  Args:
    program: what is trained.
    budget: how long, and how often what else.
    learners: for each of the program, its batches, evaluation, metrics and checkpoints.
    progress: told (steps done, how many of them just now).
    stop: becomes true when the run is asked to end.

  Returns:
    The seconds that each learner took, over all lives of the run: what they took together is split evenly.

  Raises:
    NonFinite: a term of the loss went bad. The last checkpoint was made before.
    Interrupted: the run was asked to stop. The states are saved.
  """
  at_once = parallel.steps_at_once(program.devices, budget.steps_at_once)
  window, began = Window([of.note.get("window") for of in learners], program.apart), time.monotonic()
  spent = lambda of: of.note.get("seconds", 0.0) + (time.monotonic() - began) / len(learners)
  step = int(program.state(0).step) - budget.first_step
  batches = zip(*(of.batches(step) for of in learners), strict=True)
  for together in _together(budget, batches, step, at_once):
    if budget.probes(step + 1):
      _write_pulls(program, learners, together[0], _stamp(budget, step + 1))
    window.add(program.train(together))
    step += len(together)
    stamp = _stamp(budget, step)
    if budget.logs(step):
      for of, means in zip(learners, window.means(step), strict=True):
        of.write(stamp | means)
    progress(step, len(together))
    if budget.evaluates(step):
      for i, of in enumerate(learners):
        of.write(stamp | of.evaluate(step, stage_lib.learner_variables(program.state(i))))
    stopping = stop.reached()  # once: a signal that comes later waits for the next step, and its save
    if budget.saves(step) or stopping:
      # Fetching first: what is not finite must not replace the last good checkpoint.
      for i, (of, values) in enumerate(zip(learners, window.fetch(step), strict=True)):
        of.checkpoints.save(step, program.state(i), {"window": values, "seconds": spent(of)})
    if stopping:
      for of in learners:
        of.checkpoints.close()
      raise interrupt.Interrupted(stop.signum, f"stopped at step {step} of {budget.steps}")
  jax.block_until_ready(program.state(0))
  return [spent(of) for of in learners]


def _write_pulls(
  program: Program, learners: Sequence[Learning], batches: Batches, stamp: dict[str, Any]
) -> None:
  for of, pulls in zip(learners, program.apart(jax.device_get(program.probe(batches))), strict=True):
    of.write(stamp | {f"train/{name}": float(x) for name, x in sorted(pulls.items())})


def _together(budget: Budget, batches: Iterable[Batches], step: int, at_once: int) -> Iterator[list[Batches]]:
  """Batches of steps that are one program: `at_once`, or one where something is to happen before so many."""
  batches = iter(batches)
  while step < budget.steps:
    between = range(step + 1, min(step + at_once, budget.steps + 1))
    count = 1 if step + at_once > budget.steps or any(map(budget.looks_up, between)) else at_once
    yield list(itertools.islice(batches, count))
    step += count


def _each(metrics: dict[str, Any]) -> list[dict[str, Any]]:
  """The metrics of each step of those of one, or of several as arrays."""
  count = max((np.size(value) for value in metrics.values()), default=0)
  return [{name: np.reshape(value, -1)[i] for name, value in metrics.items()} for i in range(count)]


def _stamp(budget: Budget, step: int) -> dict[str, Any]:
  return {"step": step, "epoch": step / budget.steps_per_epoch}
