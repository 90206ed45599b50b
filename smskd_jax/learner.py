"""A learner in one stage: what it begins with and reads, its metrics and checkpoints, what it leaves in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from smskd_jax import keeping, recall
from smskd_jax.data.dataset import Dataset
from smskd_jax.heldout import HeldOut, Said
from smskd_jax.models import renormalized, spec
from smskd_jax.plan import Plan
from smskd_jax.runtime import (
  answers,
  checkpoint,
  clock,
  console,
  integrity,
  interrupt,
  parallel,
  processes,
  store,
  workdir,
)
from smskd_jax.runtime.history import Evaluations, History
from smskd_jax.runtime.store import Entry
from smskd_jax.state import Frozen, TrainState
from smskd_jax.training import batches, carry_over, initial, loop
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.program import Beside

# Streams of a stage's random key: what is drawn from one does not depend on how much is drawn from another.
STEPS, ORDER, VARIABLES, AUX = range(4)


class Setting(NamedTuple):
  """What the learners of an experiment's stages share."""

  config: dict[str, Any]  # resolved; nothing is read from it that depends on the seed
  dataset: Dataset
  devices: parallel.Devices
  store: Path
  held_out: HeldOut


class Learner:
  """Opened before a stage is trained, finished after it, closed in any case."""

  def __init__(self, setting: Setting, plan: Plan, events: Path, stop: interrupt.Interrupt):
    """Computes the stage's first state and what it reads; the caller holds the lock of its entry.

    Args:
      setting: of the experiment.
      plan: of the stage.
      events: gets the TensorBoard events.
      stop: becomes true when the run is asked to end.

    Raises:
      Interrupted: the run was asked to stop while teacher outputs were computed.
    """
    self.plan, self.entry, self._setting, self._events = plan, Entry(setting.store, plan.key), setting, events
    about = {"name": plan.name, "network": plan.config["learner"], **_about(plan, setting.dataset)}
    self.entry.begin(plan.description, about | workdir.environment(setting.devices))
    key = jax.random.fold_in(jax.random.key(plan.description["seed"]), plan.origin)
    order = jax.random.fold_in(key, ORDER)
    own = parallel.own_places(plan.budget.batch_size, setting.devices)
    begin = plan.budget.first_step
    self.batches = lambda step: batches.draw(plan.drawing, order, begin + step, own)
    self.timer = clock.Clock()
    with self.timer.phase(clock.PREPARE):
      self._state: TrainState | None = self._first_state(key)
      self.frozen, self._asked = self._read(jax.random.fold_in(key, STEPS), order, stop)
    self._last: Said | None = None
    # Metrics before the first step; None where a checkpoint goes on.
    self.first: dict[str, float] | None = None
    self.done, self._note = 0, dict[str, Any]()

  @property
  def state(self) -> TrainState:
    """What training begins with, until it is taken."""
    assert self._state is not None
    return self._state

  def open(self) -> None:
    """Goes on from the last checkpoint, if there is one; opens what is written while it trains."""
    with self.timer.phase(clock.PREPARE):
      self._open()

  def _open(self) -> None:
    keep, select = self._setting.config["checkpoint"]["keep"], self.plan.config["select"] == "validation"
    variables_of = stage_lib.learner_variables
    self._history = History(self.entry, self._events, variables_of, keep=keep, select=select)
    restored = self._history.open(self.state, console.say)
    if restored:
      self.done, self._state, self._note = restored
      console.say(f"{self.plan.name}: goes on from step {self.done} of {self.plan.budget.steps}")
    else:
      with self.timer.phase(clock.EVALUATE):
        self.first = {"step": 0, "epoch": 0.0} | self._look(0, variables_of(self.state))
      self._history.write(self.first)

  def beside(self) -> Beside:
    """It as one of several that are trained at once."""
    apart = zip(self.plan.reads.teachers, self._asked.folders or self.plan.reads.teachers, strict=True)
    return Beside(self.take_state(), self.frozen, tuple(apart))

  def take_state(self) -> TrainState:
    """Hands over the state that training begins with; here it takes up memory no longer."""
    state, self._state = self.state, None
    return state

  def learning(self) -> loop.Learning:
    """What the loop calls."""
    seconds = clock.total(self._note.get("seconds_by_phase", {}), self.timer.seconds())
    return loop.Learning(self.batches, self._look, self._history.write, self._history, self._note, seconds)

  def saved(self) -> str:
    """From where it could go on, in words."""
    steps = self._history.steps()
    return f"the last checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"

  def close(self) -> None:
    """Waits for what is being saved."""
    self._history.close()

  def finish(self, state: TrainState, seconds: Mapping[str, float], learners: int) -> dict[str, Any]:
    """Puts what the stage leaves into the store.

    Args:
      state: the last.
      seconds: spent on the stage until now, by phase.
      learners: how many were trained at once.

    Returns:
      The stage's result; 'seconds' of wall-clock time, all processes that trained the stage together, and
      'seconds_by_phase', whose keys runtime/clock.py explains and whose sum they are.
    """
    timer = clock.Clock()
    with timer.phase(clock.SAVE):
      result = self._leave(state, learners, timer)
    of_phase = clock.total(dict(seconds), timer.seconds())
    result = processes.agree(result | {"seconds": sum(of_phase.values()), "seconds_by_phase": of_phase})
    self.entry.finish(result)
    return result

  def _leave(self, state: TrainState, learners: int, timer: clock.Clock) -> dict[str, Any]:
    """Saves the network and its outputs; returns the result without times. Of several processes the lead's counts."""
    plan, entry = self.plan, self.entry
    chosen = self._history.best
    final = chosen or stage_lib.learner_variables(state)
    checkpoint.save_variables(entry.final, final)
    recall.keep(entry, state)
    store.write_arrays(entry.optimizer, carry_over.to_arrays(state.opt_state))
    said = self._last.logits if self._last and not chosen else None
    with timer.phase(clock.EVALUATE):
      kept, told = self._setting.held_out.at_end(plan, parallel.replicate(final, self._setting.devices), said)
    answers.write(entry.answers, kept)
    result = told | {"learners_at_once": learners}
    result = _result(plan, self._history.evaluations, self._asked.forward_passes) | result
    self._history.sync()
    return result

  def _first_state(self, key: jax.Array) -> TrainState:
    plan, dataset = self.plan, self._setting.dataset
    image = spec.image(dataset.image_shape)
    if plan.reads.start is not None:
      variables = self._final(plan.reads.start)
    else:
      variables = initial.init_variables(plan.stage.learner, jax.random.fold_in(key, VARIABLES), image)
    teachers = tuple(map(self._final, plan.reads.teachers))
    of_methods = jax.random.fold_in(key, AUX)
    state = initial.init_state(plan.stage, of_methods, variables, teachers, image, dataset.train.label)
    state = self._take_over(state)
    return parallel.replicate(parallel.same(state), self._setting.devices)

  def _take_over(self, state: TrainState) -> TrainState:
    """The state with what the stage carries over from the learner's previous one, beside its variables."""
    how = self.plan.config["carry_over"]
    if how == carry_over.VARIABLES:
      return state
    before = self.plan.earlier[-1]
    entry = Entry(self._setting.store, before.key)
    methods = recall.read(entry, before, self._setting.dataset) if how == carry_over.ALL else None
    state = carry_over.take_over(state, how, integrity.read_arrays(entry.checked(entry.optimizer)), methods)
    return state._replace(step=state.step + self.plan.budget.first_step)

  def _read(
    self, key: jax.Array, order: jax.Array, stop: interrupt.Interrupt
  ) -> tuple[Frozen, keeping.Asked]:
    """What the stage reads, on the host, and what it took to have it."""
    plan, setting = self.plan, self._setting
    asked = keeping.Asked((), (), 0)
    if plan.stage.number:
      size, stages = setting.config["evaluate"]["batch_size"], setting.config["stages"]
      where = plan, setting.dataset, setting.devices, setting.store
      try:
        with self.timer.phase(clock.CACHE):
          drawn = keeping.drawn(plan, key, order)
          asked = keeping.ask(*where, batch_size=size, drawn=drawn, stages=stages, stop=stop)
      except interrupt.Interrupted as error:
        error.args = (f"stage {plan.name!r}, {error}",)
        raise
    teachers = asked.teachers or tuple(map(self._final, plan.reads.teachers))
    reference = None if plan.reads.reference is None else self._final(plan.reads.reference)
    return Frozen(key, teachers, reference), asked

  def _final(self, key: str) -> Any:
    entry = Entry(self._setting.store, key)
    return checkpoint.load_variables(entry.checked(entry.final))

  def _look(self, step: int, variables: Any) -> dict[str, float]:
    """Evaluates, and keeps what the network takes each image for and, where it is asked for, the best network."""
    variables = parallel.replicate(variables, self._setting.devices)
    self._last = said = self._setting.held_out.of_learner(self.plan, variables)
    line = {"step": step, "epoch": step / self.plan.budget.steps_per_epoch} | said.values
    self._history.add(line, said.choices, variables)
    return said.values


def _about(plan: Plan, dataset: Dataset) -> dict[str, Any]:
  """The images that a stage's network is for: stored beside its variables."""
  moments = renormalized.moments(plan.stage.learner) or dataset.moments
  normalization = {"mean": list(moments[0]), "std": list(moments[1])}
  return {
    "image_shape": list(dataset.image_shape),
    "num_classes": len(dataset.class_names),
    "normalization": normalization,
  }


def _result(plan: Plan, evaluations: Evaluations, kept: int) -> dict[str, Any]:
  """The result of a finished stage; `kept` forward passes of its teachers were computed before it."""
  images = plan.budget.steps * plan.budget.batch_size * len(plan.stage.views)
  return {
    "model": plan.description["network"]["model"],
    "methods": [method["name"] for method in plan.config["methods"]],
    "epochs": plan.budget.epochs,
    "steps": plan.budget.steps,
    "forward_passes": {
      "learner": images,
      "teachers": kept if plan.stage.number else images * len(plan.reads.teachers),
      "reference": images if plan.reads.reference is not None else 0,
    },
    "backward_passes": images,
    "metrics": evaluations._asdict(),
    "reads": plan.reads._asdict(),
  }
