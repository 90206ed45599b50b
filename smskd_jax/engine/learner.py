"""A learner in one stage: what it begins with and reads, its metrics and checkpoints, what it leaves in the store."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from smskd_jax.data.dataset import Dataset
from smskd_jax.engine import forgetting, teacher_cache
from smskd_jax.engine.evaluator import EvalResult, Evaluator
from smskd_jax.engine.plan import StagePlan
from smskd_jax.models import introspection, renormalized
from smskd_jax.runtime import (
  checkpoint,
  clock,
  console,
  distributed,
  eval_outputs,
  integrity,
  parallel,
  signals,
  store,
  workdir,
)
from smskd_jax.runtime.history import Evaluations, History
from smskd_jax.runtime.store import StageEntry
from smskd_jax.training import batches, carry_over, initialization, loop
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.loop import SeedState
from smskd_jax.types import Frozen, TrainState

# Streams of a stage's random key: what is drawn from one does not depend on how much is drawn from another.
STEPS, ORDER, VARIABLES, AUX = range(4)


class RunContext(NamedTuple):
  """What the learners of an experiment's stages share."""

  config: dict[str, Any]  # resolved; nothing is read from it that depends on the seed
  dataset: Dataset
  devices: parallel.Devices
  store: Path
  evaluator: Evaluator


class StageTraining:
  """Opened before a stage is trained, finished after it, closed in any case."""

  def __init__(self, setting: RunContext, plan: StagePlan, events: Path, stop: signals.StopRequest):
    """Computes the stage's first state and what it reads; the caller holds the lock of its entry.

    Args:
      setting: of the experiment.
      plan: of the stage.
      events: gets the TensorBoard events.
      stop: becomes true when the run is asked to end.

    Raises:
      Interrupted: the run was asked to stop while teacher outputs were computed.
    """
    self.plan, self.entry, self._context, self._events = (
      plan,
      StageEntry(setting.store, plan.key),
      setting,
      events,
    )
    about = {"name": plan.name, "network": plan.config["network"], **_image_metadata(plan, setting.dataset)}
    self.entry.write_metadata(plan.description, about | workdir.environment(setting.devices))
    key = jax.random.fold_in(jax.random.key(plan.description["seed"]), plan.origin)
    order = jax.random.fold_in(key, ORDER)
    own = parallel.local_batch_indices(plan.loop_config.batch_size, setting.devices)
    begin = plan.loop_config.first_step
    self.batches = lambda step: batches.iterate_batches(plan.input_spec, order, begin + step, own)
    self.timer = clock.Clock()
    with self.timer.phase(clock.PREPARE):
      self._state: TrainState | None = self._first_state(key)
      self.frozen, self._cache = self._load_inputs(jax.random.fold_in(key, STEPS), order, stop)
    self._last: EvalResult | None = None
    # Metrics before the first step; None where a checkpoint goes on.
    self.initial_metrics: dict[str, float] | None = None
    self.start_step, self._note = 0, dict[str, Any]()

  @property
  def state(self) -> TrainState:
    """What training begins with, until it is taken."""
    assert self._state is not None
    return self._state

  def restore(self) -> None:
    """Goes on from the last checkpoint, if there is one; opens what is written while it trains."""
    with self.timer.phase(clock.PREPARE):
      self._restore()

  def _restore(self) -> None:
    keep, select = (
      self._context.config["checkpoint"]["max_to_keep"],
      self.plan.config["keep_checkpoint"] == "validation",
    )
    variables_of = stage_lib.student_variables
    self._history = History(self.entry, self._events, variables_of, keep=keep, select=select)
    restored = self._history.restore(self.state, console.log)
    if restored:
      self.start_step, self._state, self._note = restored
      console.log(
        f"{self.plan.name}: goes on from step {self.start_step} of {self.plan.loop_config.num_steps}"
      )
    else:
      with self.timer.phase(clock.EVALUATE):
        self.initial_metrics = {"step": 0, "epoch": 0.0} | self._evaluate(0, variables_of(self.state))
      self._history.write(self.initial_metrics)

  def seed_state(self) -> SeedState:
    """It as one of several that are trained at once."""
    apart = zip(self.plan.inputs.teachers, self._cache.folders or self.plan.inputs.teachers, strict=True)
    return SeedState(self.take_state(), self.frozen, tuple(apart))

  def take_state(self) -> TrainState:
    """Hands over the state that training begins with; here it takes up memory no longer."""
    state, self._state = self.state, None
    return state

  def callbacks(self) -> loop.LoopCallbacks:
    """What the loop calls."""
    seconds = clock.add_seconds(self._note.get("seconds_by_phase", {}), self.timer.seconds())
    return loop.LoopCallbacks(
      self.batches, self._evaluate, self._history.write, self._history, self._note, seconds
    )

  def describe_checkpoint(self) -> str:
    """From where it could go on, in words."""
    steps = self._history.checkpoint_steps()
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
      result = self._save_outputs(state, learners, timer)
    of_phase = clock.add_seconds(dict(seconds), timer.seconds())
    result = distributed.broadcast(result | {"seconds": sum(of_phase.values()), "seconds_by_phase": of_phase})
    self.entry.mark_finished(result)
    return result

  def _save_outputs(self, state: TrainState, learners: int, timer: clock.Clock) -> dict[str, Any]:
    """Saves the network and its outputs; returns the result without times. Of several processes the lead's counts."""
    plan, entry = self.plan, self.entry
    chosen = self._history.best
    final = chosen or stage_lib.student_variables(state)
    checkpoint.save_variables(entry.final, final)
    forgetting.save_method_state(entry, state)
    store.write_arrays(entry.optimizer, carry_over.flatten_opt_state(state.opt_state))
    said = self._last.logits if self._last and not chosen else None
    with timer.phase(clock.EVALUATE):
      kept, told = self._context.evaluator.final_outputs(
        plan, parallel.replicate(final, self._context.devices), said
      )
    eval_outputs.write(entry.eval_outputs, kept)
    result = told | {"learners_at_once": learners}
    result = _result(plan, self._history.evaluations, self._cache.forward_passes) | result
    self._history.sync()
    return result

  def _first_state(self, key: jax.Array) -> TrainState:
    plan, dataset = self.plan, self._context.dataset
    image = introspection.image_spec(dataset.image_shape)
    if plan.inputs.init is not None:
      variables = self._load_variables(plan.inputs.init)
    else:
      variables = initialization.init_variables(plan.stage.student, jax.random.fold_in(key, VARIABLES), image)
    teachers = tuple(map(self._load_variables, plan.inputs.teachers))
    of_methods = jax.random.fold_in(key, AUX)
    state = initialization.init_state(plan.stage, of_methods, variables, teachers, image, dataset.train.label)
    state = self._carry_over(state)
    return parallel.replicate(parallel.broadcast_from_primary(state), self._context.devices)

  def _carry_over(self, state: TrainState) -> TrainState:
    """The state with what the stage carries over from the learner's previous one, beside its variables."""
    how = self.plan.config["carry_over"]
    if how == carry_over.VARIABLES:
      return state
    before = self.plan.ancestors[-1]
    entry = StageEntry(self._context.store, before.key)
    methods = (
      forgetting.load_method_state(entry, before, self._context.dataset) if how == carry_over.ALL else None
    )
    state = carry_over.apply_carry_over(
      state, how, integrity.read_arrays(entry.verified(entry.optimizer)), methods
    )
    return state._replace(step=state.step + self.plan.loop_config.first_step)

  def _load_inputs(
    self, key: jax.Array, order: jax.Array, stop: signals.StopRequest
  ) -> tuple[Frozen, teacher_cache.CacheResult]:
    """What the stage reads, on the host, and what it took to have it."""
    plan, setting = self.plan, self._context
    asked = teacher_cache.CacheResult((), (), 0)
    if plan.stage.view_index_fn:
      size, stages = setting.config["evaluate"]["batch_size"], setting.config["stages"]
      where = plan, setting.dataset, setting.devices, setting.store
      try:
        with self.timer.phase(clock.CACHE):
          drawn = teacher_cache.sampled_views(plan, key, order)
          asked = teacher_cache.load_or_compute(
            *where, batch_size=size, sampled=drawn, stages=stages, stop=stop
          )
      except signals.Interrupted as error:
        error.args = (f"stage {plan.name!r}, {error}",)
        raise
    teachers = asked.teachers or tuple(map(self._load_variables, plan.inputs.teachers))
    reference = None if plan.inputs.reference is None else self._load_variables(plan.inputs.reference)
    return Frozen(key, teachers, reference), asked

  def _load_variables(self, key: str) -> Any:
    entry = StageEntry(self._context.store, key)
    return checkpoint.load_variables(entry.verified(entry.final))

  def _evaluate(self, step: int, variables: Any) -> dict[str, float]:
    """Evaluates, and keeps what the network takes each image for and, where it is asked for, the best network."""
    variables = parallel.replicate(variables, self._context.devices)
    self._last = said = self._context.evaluator.evaluate_stage(self.plan, variables)
    line = {"step": step, "epoch": step / self.plan.loop_config.steps_per_epoch} | said.values
    self._history.add_evaluation(line, said.predictions, variables)
    return said.values


def _image_metadata(plan: StagePlan, dataset: Dataset) -> dict[str, Any]:
  """The images that a stage's network is for: stored beside its variables."""
  moments = renormalized.channel_stats(plan.stage.student) or dataset.channel_stats
  normalization = {"mean": list(moments[0]), "std": list(moments[1])}
  return {
    "image_shape": list(dataset.image_shape),
    "num_classes": len(dataset.class_names),
    "normalization": normalization,
  }


def _result(plan: StagePlan, evaluations: Evaluations, cached_passes: int) -> dict[str, Any]:
  """The result of a finished stage; `kept` forward passes of its teachers were computed before it."""
  images = plan.loop_config.num_steps * plan.loop_config.batch_size * len(plan.stage.views)
  return {
    "model": plan.description["network"]["model"],
    "methods": [method["name"] for method in plan.config["methods"]],
    "epochs": plan.loop_config.epochs,
    "steps": plan.loop_config.num_steps,
    "forward_passes": {
      "student": images,
      "teachers": cached_passes if plan.stage.view_index_fn else images * len(plan.inputs.teachers),
      "reference": images if plan.inputs.reference is not None else 0,
    },
    "backward_passes": images,
    "metrics": evaluations._asdict(),
    "inputs": plan.inputs._asdict(),
  }
