"""Runs one stage: batches to the compiled step, metrics, evaluation, checkpoints, progress.

All that happens beside the step happens at steps that the config alone decides, and nothing but the state carries
over from one to the next: an interrupted stage, continued from a checkpoint, is the same stage.
"""

from collections.abc import Callable, Iterable, Iterator
import itertools
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint, interrupt, parallel
from smskd_jax.state import Batch, Frozen, TrainState
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.stage import Stage

IN_FLIGHT = (
  2  # programs handed to the devices and not waited for: enough to hide the host, few enough to stop soon
)


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


class Hooks(NamedTuple):
  """What the loop calls, and does not know."""

  batches: Callable[[int], Iterable[Batch]]  # the batches from a step on, on the host
  evaluate: Callable[[int, Any], dict[str, float]]  # (steps done, the learner's variables) -> numbers by name
  write: Callable[[dict[str, Any]], None]  # a line of metrics
  progress: Callable[[int, int], None]  # (steps done, how many of them just now)


class NonFinite(UserError):
  """A term of the loss has become infinite or not a number."""


class Window:
  """The training metrics of the steps since the last line was written.

  They stay on the device until they are asked for, so that the next steps need not wait. What was fetched goes into a
  checkpoint's note: a continued run writes the same line.
  """

  def __init__(self, note: dict[str, Any] | None = None):
    """Begins empty, or with what a checkpoint's note tells."""
    self._fetched: dict[str, list[float]] = {name: list(v) for name, v in (note or {}).items()}
    self._pending: list[dict[str, jax.Array]] = []

  def add(self, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step, or of several, [n]; waits for those of the program before the ones in flight."""
    self._pending.append(metrics)
    if len(self._pending) > IN_FLIGHT:
      jax.block_until_ready(self._pending[-1 - IN_FLIGHT])

  def fetch(self, step: int) -> dict[str, list[float]]:
    """All values by name, the last of them of the step before `step`.

    Raises:
      NonFinite: one is not a finite number.
    """
    pending = [one for metrics in jax.device_get(self._pending) for one in _each(metrics)]
    for i, metrics in enumerate(pending):
      at = step - len(pending) + i + 1
      for name in sorted(
        metrics, key=lambda name: name in ("loss", "gradient_norm")
      ):  # the cause before its effects
        value = float(metrics[name])
        if not math.isfinite(value):
          raise NonFinite(f"step {at}: {name} is {value}; lower the learning rate or the weight of that term")
        self._fetched.setdefault(name, []).append(value)
    self._pending = []
    return {
      name: list(values) for name, values in self._fetched.items()
    }  # a copy: a save goes on in the background

  def means(self, step: int) -> dict[str, float]:
    """The mean of each metric, by 'train/NAME'; begins anew."""
    values = self.fetch(step)
    self._fetched = {}
    return {f"train/{name}": math.fsum(v) / len(v) for name, v in sorted(values.items())}


def run(
  stage: Stage,
  budget: Budget,
  state: TrainState,
  frozen: Frozen,
  devices: parallel.Devices,
  checkpoints: checkpoint.Checkpoints,
  hooks: Hooks,
  stop: interrupt.Interrupt,
  note: dict[str, Any],
) -> tuple[TrainState, float]:
  """Trains from `state.step` to the end.

  Args:
    stage: what the step computes.
    budget: how long, and how often what else.
    state: where to begin: new, or from a checkpoint.
    frozen: the stage's key, teachers and reference.
    devices: to train on.
    checkpoints: where to save.
    hooks: batches, evaluation, metrics and progress.
    stop: becomes true when the run is asked to end.
    note: of the checkpoint that `state` comes from; {} for a new state.

  Returns:
    The final state, and the seconds that it took, over all lives of the run.

  Raises:
    NonFinite: a term of the loss went bad. The last checkpoint was made before.
    Interrupted: the run was asked to stop. The state is saved.
  """
  pure, at_once = (
    stage_lib.make_train_step(stage, parallel.AXIS),
    parallel.steps_at_once(devices, budget.steps_at_once),
  )
  step_of, steps_of = parallel.compile_step(pure, devices), parallel.compile_steps(pure, devices)
  window, began = Window(note.get("window")), time.monotonic() - note.get("seconds", 0.0)
  probe = parallel.compile_probe(
    stage_lib.make_probe(stage, parallel.AXIS), devices
  )  # compiled when it is called
  step = int(state.step)
  for together in _together(budget, hooks.batches(step), step, at_once):
    if budget.probes(step + 1):
      pulls = probe(state, frozen, parallel.split(together[0], devices))
      hooks.write(_stamp(budget, step + 1) | {f"train/{name}": float(x) for name, x in sorted(pulls.items())})
    if len(together) == 1:
      state, metrics = step_of(state, frozen, parallel.split(together[0], devices))
    else:
      state, metrics = steps_of(state, frozen, parallel.split_each(together, devices))
    window.add(metrics)
    step += len(together)
    if budget.logs(step):
      hooks.write(_stamp(budget, step) | window.means(step))
    hooks.progress(step, len(together))
    if budget.evaluates(step):
      hooks.write(_stamp(budget, step) | hooks.evaluate(step, stage_lib.learner_variables(state)))
    stopping = bool(stop)  # read once: a signal that comes later waits for the next step, and so for its save
    if budget.saves(step) or stopping:
      # Fetching first: what is not finite must not replace the last good checkpoint.
      note = {"window": window.fetch(step), "seconds": time.monotonic() - began}
      checkpoints.save(step, state, note)
    if stopping:
      checkpoints.close()
      raise interrupt.Interrupted(stop.signum, f"stopped at step {step} of {budget.steps}")
  jax.block_until_ready(state)
  return state, time.monotonic() - began


def _together(budget: Budget, batches: Iterable[Batch], step: int, at_once: int) -> Iterator[list[Batch]]:
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
