"""Training of a stage, with one seed or several: read from the store, or trained."""

from collections.abc import Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax.data.dataset import Dataset
from smskd_jax.engine import forgetting, teacher_cache, training_statistics
from smskd_jax.engine.evaluator import EvalResult, Evaluator
from smskd_jax.engine.plan import StagePlan
from smskd_jax.engine.profiler import Profiler
from smskd_jax.engine.progress import StageProgress
from smskd_jax.engine.summary import RunEstimate
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.models import introspection, renormalized
from smskd_jax.runtime import (
  checkpoint,
  clock,
  console,
  distributed,
  eval_outputs,
  integrity,
  parallel,
  seed_parallel,
  signals,
  store,
  workdir,
)
from smskd_jax.runtime.history import Evaluations, History
from smskd_jax.runtime.inventory import StoredStage, read_finished
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.writer import mirror_events
from smskd_jax.training import batches, carry_over, initialization, loop
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.loop import NonFiniteError, SeedParallelTrainer, SeedState, SingleTrainer, Trainer
from smskd_jax.types import Frozen, TrainState

# Streams of a stage's random key. The numbers drawn from one stream do not depend on draws from another.
RNG_STEPS, RNG_ORDER, RNG_VARIABLES, RNG_METHODS = range(4)


class RunContext(NamedTuple):
  """All that the stages of an experiment share."""

  config: dict[str, Any]  # resolved; only fields that do not depend on the seed are read
  dataset: Dataset
  devices: parallel.Devices
  store: Path
  evaluator: Evaluator
  seed_devices: parallel.Devices  # devices on which several seeds may train at once
  estimate: RunEstimate
  profiler: Profiler


class StageRunner:
  """Runs the stages of experiments that differ in their seed alone."""

  def __init__(self, context: RunContext):
    """Stores the context; computes nothing."""
    self._context = context

  def run_stage(
    self, plans: Sequence[StagePlan], events: Sequence[Path], stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    """Results of a stage, one per seed: from the store, or trained now.

    Args:
      plans: of the stage, one per seed.
      events: folders for TensorBoard events, one per seed.
      stop: becomes true when the run is asked to end.

    Raises:
      Interrupted: the run was asked to end; the state is saved.
    """
    entries = [StageEntry(self._context.store, plan.key) for plan in plans]
    with contextlib.ExitStack() as locks:
      for entry in sorted(entries, key=lambda entry: entry.key):  # one order everywhere: no deadlock
        locks.enter_context(entry.lock(waiting=console.log))
      stored = self._load_stored(plans, entries)
      results = [one.result for one in stored]
      missing = [i for i, result in enumerate(results) if result is None]
      origin = ["read from the store"] * len(plans)
      for group in seed_parallel.seed_groups(missing, self._context.seed_devices):
        trained = self._train_seeds([plans[i] for i in group], [events[i] for i in group], stop)
        for i, new in zip(group, trained, strict=True):
          results[i], origin[i] = new, _format_time(new)
    for i, (plan, result) in enumerate(zip(plans, results, strict=True)):
      assert result is not None
      if i not in missing and stored[i].has_metrics:
        mirror_events(entries[i].metrics, events[i])
      name = plan.name if len(plans) == 1 else f"{plan.name} of seed {plan.description['seed']}"
      console.log(f"{name}: {_format_metrics(result['metrics']['last'])}; {origin[i]}")
    return [_with_names(plan, result or {}) for plan, result in zip(plans, results, strict=True)]

  def evaluate_pretrained(
    self, name: str, network: nn.Module, pretrained: Pretrained, outputs_path: Path
  ) -> dict[str, Any]:
    """Evaluates a network that no stage trains, and puts its variables into the store.

    Args:
      name: of the network.
      network: the module.
      pretrained: its variables.
      outputs_path: file for its outputs on the test sets. The outputs belong to the run and not to the store, because
        the key of pretrained variables does not depend on the data.

    Returns:
      The entry of the network in result.json.
    """
    entry = StageEntry(self._context.store, pretrained.key)
    normalization = pretrained.normalization and pretrained.normalization._asdict()
    with entry.lock(waiting=console.log):
      if not distributed.broadcast(entry.state() == "in the store" and not entry.problems()):
        metadata = {"source": pretrained.source, "normalization": normalization}
        entry.write_metadata({"variables": pretrained.fingerprint}, metadata)
        checkpoint.save_variables(entry.final, pretrained.variables)
        entry.mark_finished({"fingerprint": pretrained.fingerprint})
    evaluated, outputs = self._context.evaluator.evaluate_frozen(pretrained.key, network)
    eval_outputs.write(outputs_path, outputs)
    accuracy = 100 * evaluated.values["test/accuracy"]
    console.log(f"{name}: test accuracy {accuracy:.2f} %; variables of {pretrained.source}")
    return {
      "network": name,
      "key": pretrained.key,
      "fingerprint": pretrained.fingerprint,
      "source": pretrained.source,
      "normalization": normalization,
      "metrics": evaluated.values,
    }

  def _load_stored(self, plans: Sequence[StagePlan], entries: Sequence[StageEntry]) -> list[StoredStage]:
    """Verified results of a stage in the store, one per seed.

    Damaged evaluation outputs are computed again.
    """
    pairs = zip(plans, entries, strict=True) if distributed.is_primary() else ()
    found = [read_finished(entry, plan.name, console.log) for plan, entry in pairs]
    stored = [StoredStage(*one) for one in distributed.broadcast(found)]
    for plan, entry, one in zip(plans, entries, stored, strict=True):
      if not one.has_eval_outputs:
        final = parallel.replicate(
          checkpoint.load_final(self._context.store, plan.key), self._context.devices
        )
        outputs, _ = self._context.evaluator.final_outputs(plan, final)
        eval_outputs.write(entry.eval_outputs, outputs)
        entry.mark_finished(one.result or {})
    return stored

  def _train_seeds(
    self, plans: Sequence[StagePlan], events: Sequence[Path], stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    """Trains a stage with one seed, or with several at once; returns the results."""
    seeds = [
      StageTraining(self._context, plan, folder, stop) for plan, folder in zip(plans, events, strict=True)
    ]
    if len(seeds) == 1:
      (seed,) = seeds
      self._context.profiler.profile(seed.plan, seed.state, seed.frozen, seed.batches(0))
    with contextlib.ExitStack() as opened:
      for seed in seeds:
        seed.restore()
        opened.callback(seed.close)
      # Seeds that were stopped at different steps continue one by one: a compiled step has one step number.
      together = len({seed.start_step for seed in seeds}) == 1
      groups = [seeds] if together else [[seed] for seed in seeds]
      try:
        return [result for group in groups for result in self._run_together(group, stop)]
      except Exception as error:
        error.add_note(f"stage {plans[0].name!r}: {seeds[0].describe_checkpoint()}")
        raise

  def _run_together(
    self, seeds: "Sequence[StageTraining]", stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    plan, trainer, timer = seeds[0].plan, self._make_trainer(seeds), clock.Clock()
    overhead = sum(
      seed.timer.seconds_in(phase) for seed in seeds for phase in (clock.PREPARE, clock.EVALUATE)
    )
    progress = StageProgress(plan, len(seeds), timer, self._context.estimate, overhead)
    initial = [seed.initial_metrics for seed in seeds if seed.initial_metrics is not None]
    if len(initial) == len(seeds):
      progress.evaluated(0, initial)
    try:
      callbacks = [seed.callbacks() for seed in seeds]
      seconds = loop.run(trainer, plan.loop_config, callbacks, progress, stop, timer)
    except NonFiniteError as error:
      checkpoint_text = seeds[error.seed_index].describe_checkpoint()
      error.args = (f"stage {plan.name!r}, {error}; {checkpoint_text}",)
      raise
    except signals.Interrupted as error:
      error.args = (f"stage {plan.name!r}, {error}; {seeds[0].describe_checkpoint()}",)
      raise
    finally:
      progress.close()
    results = [seed.finish(trainer.state(i), seconds[i], len(seeds)) for i, seed in enumerate(seeds)]
    stop.set_unsaved(False)
    return results

  def _make_trainer(self, seeds: "Sequence[StageTraining]") -> Trainer:
    stage, devices = seeds[0].plan.stage, self._context.devices
    if len(seeds) > 1:
      seed_devices = self._context.seed_devices[: len(seeds)]
      return SeedParallelTrainer(stage, seed_devices, [seed.seed_state() for seed in seeds])
    (seed,) = seeds
    return SingleTrainer(stage, devices, seed.take_state(), parallel.replicate(seed.frozen, devices))


class StageTraining:
  """One seed's training of a stage: initial state, inputs, metrics, checkpoints, files.

  `restore` before training, `finish` after training, `close` in any case. The caller holds the lock of the entry.
  """

  def __init__(self, context: RunContext, plan: StagePlan, events: Path, stop: signals.StopRequest):
    """Computes the initial state and loads what the stage reads.

    Args:
      context: of the run.
      plan: of the stage.
      events: folder for TensorBoard events.
      stop: becomes true when the run is asked to end.

    Raises:
      Interrupted: the run was asked to end while teacher outputs were computed.
    """
    self._stop = stop
    self.plan, self.entry = plan, StageEntry(context.store, plan.key)
    self._context, self._events = context, events
    metadata = {"name": plan.name, "network": plan.config["network"]}
    metadata |= _image_metadata(plan, context.dataset) | workdir.environment(context.devices)
    self.entry.write_metadata(plan.description, metadata)
    key = jax.random.fold_in(jax.random.key(plan.description["seed"]), plan.origin)
    order = jax.random.fold_in(key, RNG_ORDER)
    local = parallel.local_batch_indices(plan.loop_config.batch_size, context.devices)
    first_step = plan.loop_config.first_step
    self.batches = lambda step: batches.iterate_batches(plan.input_spec, order, first_step + step, local)
    self.timer = clock.Clock()
    with self.timer.phase(clock.PREPARE):
      self._key = key
      # The statistics are computed if there is no checkpoint that has them.
      self._state: TrainState | None = self._initial_state(training_statistics.zeros(plan, context.dataset))
      self.frozen, self._cache = self._load_inputs(jax.random.fold_in(key, RNG_STEPS), order, stop)
    self._last: EvalResult | None = None
    self.initial_metrics: dict[str, float] | None = (
      None  # before the first step; None after a restored checkpoint
    )
    self.start_step, self._metadata = 0, dict[str, Any]()

  @property
  def state(self) -> TrainState:
    """Initial state, until `take_state` hands it over."""
    assert self._state is not None
    return self._state

  def restore(self) -> None:
    """Restores the last checkpoint, if there is one, and opens the files that training writes."""
    with self.timer.phase(clock.PREPARE):
      self._restore()

  def _restore(self) -> None:
    self._history = History(
      self.entry,
      self._events,
      stage_lib.student_variables,
      keep=self._context.config["checkpoint"]["max_to_keep"],
      select=self.plan.config["keep_checkpoint"] == "validation",
    )
    restored = self._history.restore(self.state, console.log)
    if restored:
      self.start_step, self._state, self._metadata = restored
      num_steps = self.plan.loop_config.num_steps
      console.log(f"{self.plan.name}: continues from step {self.start_step} of {num_steps}")
      return
    if training_statistics.num_images(self.plan):
      self._state = self._initial_state(self._compute_statistics())
    with self.timer.phase(clock.EVALUATE):
      metrics = self._evaluate(0, stage_lib.student_variables(self.state))
    self.initial_metrics = {"step": 0, "epoch": 0.0} | metrics
    self._history.write(self.initial_metrics)

  def seed_state(self) -> SeedState:
    """State and inputs of this seed, for training with other seeds at once."""
    inputs = self.plan.inputs.teachers
    teachers = zip(inputs, self._cache.folders or inputs, strict=True)
    return SeedState(self.take_state(), self.frozen, tuple(teachers))

  def take_state(self) -> TrainState:
    """Hands over the initial state, so that its memory can be donated."""
    state, self._state = self.state, None
    return state

  def callbacks(self) -> loop.LoopCallbacks:
    """Functions that the training loop calls."""
    seconds = clock.add_seconds(self._metadata.get("seconds_by_phase", {}), self.timer.seconds())
    return loop.LoopCallbacks(
      self.batches, self._evaluate, self._history.write, self._history, self._metadata, seconds
    )

  def describe_checkpoint(self) -> str:
    """Text on the last checkpoint, for error messages."""
    steps = self._history.checkpoint_steps()
    return f"the last checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"

  def close(self) -> None:
    """Waits for pending saves."""
    self._history.close()

  def finish(self, state: TrainState, seconds: Mapping[str, float], num_seeds: int) -> dict[str, Any]:
    """Writes the stage's files into the store and marks the stage as finished.

    Args:
      state: after the last step.
      seconds: spent on the stage so far, by phase.
      num_seeds: seeds that were trained at once.

    Returns:
      The stage's result. 'seconds' is wall-clock time, of all processes that trained the stage together, and the sum
      of 'seconds_by_phase'; runtime/clock.py lists the phases.
    """
    timer = clock.Clock()
    with timer.phase(clock.SAVE):
      result = self._save_outputs(state, num_seeds, timer)
    phases = clock.add_seconds(dict(seconds), timer.seconds())
    result = distributed.broadcast(result | {"seconds": sum(phases.values()), "seconds_by_phase": phases})
    self.entry.mark_finished(result)
    return result

  def _save_outputs(self, state: TrainState, num_seeds: int, timer: clock.Clock) -> dict[str, Any]:
    """Saves the final network, method variables, optimizer state and evaluation outputs.

    Returns the result.
    """
    plan, entry, evaluator = self.plan, self.entry, self._context.evaluator
    best = self._history.best
    final = best or stage_lib.student_variables(state)
    checkpoint.save_variables(entry.final, final)
    forgetting.save_method_state(entry, state)
    store.write_arrays(entry.optimizer, carry_over.flatten_opt_state(state.opt_state))
    logits = (
      self._last.logits if self._last and not best else None
    )  # the last evaluation is of the last state
    with timer.phase(clock.EVALUATE):
      replicated = parallel.replicate(final, self._context.devices)
      outputs, analysis = evaluator.final_outputs(plan, replicated, logits)
    eval_outputs.write(entry.eval_outputs, outputs)
    result = _result(plan, self._history.evaluations, self._cache.forward_passes)
    self._history.sync()
    return result | analysis | {"num_parallel_seeds": num_seeds}

  def _initial_state(self, given: tuple[Any, ...]) -> TrainState:
    """The state before the first step, with given statistics of the training set."""
    plan, dataset = self.plan, self._context.dataset
    image = introspection.image_spec(dataset.image_shape)
    if plan.inputs.init is not None:
      variables = checkpoint.load_final(self._context.store, plan.inputs.init)
    else:
      variables_key = jax.random.fold_in(self._key, RNG_VARIABLES)
      variables = initialization.init_variables(plan.stage.student, variables_key, image)
    methods_key = jax.random.fold_in(self._key, RNG_METHODS)
    state = initialization.init_state(
      plan.stage, methods_key, variables, self._load_teachers(), image, dataset.train.label, statistics=given
    )
    state = self._carry_over(state)
    return parallel.replicate(parallel.broadcast_from_primary(state), self._context.devices)

  def _load_teachers(self) -> tuple[Any, ...]:
    return tuple(checkpoint.load_final(self._context.store, key) for key in self.plan.inputs.teachers)

  def _compute_statistics(self) -> tuple[Any, ...]:
    context = self._context
    batch_size = context.config["evaluate"]["batch_size"]
    return training_statistics.compute(
      self.plan, self._load_teachers(), context.dataset, context.devices, batch_size, self._stop
    )

  def _carry_over(self, state: TrainState) -> TrainState:
    """State with all that the stage carries over besides the variables."""
    mode = self.plan.config["carry_over"]
    if mode == carry_over.VARIABLES:
      return state
    previous = self.plan.ancestors[-1]
    entry = StageEntry(self._context.store, previous.key)
    methods = None
    if mode == carry_over.ALL:
      methods = forgetting.load_method_state(entry, previous, self._context.dataset)
    optimizer = integrity.read_arrays(entry.verified(entry.optimizer))
    state = carry_over.apply_carry_over(state, mode, optimizer, methods)
    return state._replace(step=state.step + self.plan.loop_config.first_step)

  def _load_inputs(
    self, key: jax.Array, order: jax.Array, stop: signals.StopRequest
  ) -> tuple[Frozen, teacher_cache.CacheResult]:
    """Teachers, or their cached outputs, and the reference, in host memory."""
    plan, context = self.plan, self._context
    cache = teacher_cache.CacheResult((), (), 0)
    if plan.stage.view_index_fn:
      try:
        with self.timer.phase(clock.CACHE):
          cache = teacher_cache.load_or_compute(
            plan,
            context.dataset,
            context.devices,
            context.store,
            batch_size=context.config["evaluate"]["batch_size"],
            sampled=teacher_cache.sampled_views(plan, key, order),
            stages=context.config["stages"],
            stop=stop,
          )
      except signals.Interrupted as error:
        error.args = (f"stage {plan.name!r}, {error}",)
        raise
    teachers = cache.teachers or self._load_teachers()
    reference = (
      None if plan.inputs.reference is None else checkpoint.load_final(context.store, plan.inputs.reference)
    )
    return Frozen(key, teachers, reference), cache

  def _evaluate(self, step: int, variables: Any) -> dict[str, float]:
    """Evaluates the network and records the evaluation; returns the metrics."""
    variables = parallel.replicate(variables, self._context.devices)
    evaluate = self._context.evaluator.evaluate_stage
    self._last = evaluated = evaluate(self.plan, variables, is_initial=step == 0)
    line = {"step": step, "epoch": step / self.plan.loop_config.steps_per_epoch} | evaluated.values
    self._history.add_evaluation(line, evaluated.predictions, variables)
    return evaluated.values


def _image_metadata(plan: StagePlan, dataset: Dataset) -> dict[str, Any]:
  """Shape, classes and normalization of the images that a stage's network takes.

  Stored beside its variables.
  """
  stats = renormalized.channel_stats(plan.stage.student) or dataset.channel_stats
  return {
    "image_shape": list(dataset.image_shape),
    "num_classes": len(dataset.class_names),
    "normalization": {"mean": list(stats[0]), "std": list(stats[1])},
  }


def _result(plan: StagePlan, evaluations: Evaluations, cached_passes: int) -> dict[str, Any]:
  """Result of a finished stage."""
  images = plan.loop_config.num_steps * plan.loop_config.batch_size * len(plan.stage.views)
  passes = cached_passes if plan.stage.view_index_fn else images * len(plan.inputs.teachers)
  return {
    "model": plan.description["network"]["model"],
    "methods": [method["name"] for method in plan.config["methods"]],
    "epochs": plan.loop_config.epochs,
    "steps": plan.loop_config.num_steps,
    "forward_passes": {
      "student": images,
      "teachers": passes + training_statistics.num_images(plan) * len(plan.inputs.teachers),
      "reference": images if plan.inputs.reference is not None else 0,
    },
    "backward_passes": images,
    "metrics": evaluations._asdict(),
    "inputs": plan.inputs._asdict(),
  }


def _with_names(plan: StagePlan, result: Mapping[str, Any]) -> dict[str, Any]:
  """Result with the names that this run gives to the stage and to earlier stages."""
  names = {ancestor.key: ancestor.name for ancestor in plan.ancestors}
  forgotten = {
    split: [{"stage": names[record["key"]], **record} for record in records]
    for split, records in result.get("forgetting", {}).items()
  }
  own = {"name": plan.name, "network": plan.config["network"], "key": plan.key}
  return {**own, **result, "forgetting": forgotten}


def _format_time(result: Mapping[str, Any]) -> str:
  compiling = result["seconds_by_phase"].get(clock.COMPILE, 0.0)
  return (
    f"{console.format_duration(result['seconds'])}, of which {console.format_duration(compiling)} compiling"
  )


def _format_metrics(metrics: Mapping[str, float]) -> str:
  parts = [f"test accuracy {100 * metrics['test/accuracy']:.2f} %"]
  for role in ("teacher", "reference"):
    if f"test/{role}_agreement" in metrics:
      parts.append(f"agrees with its {role} on {100 * metrics[f'test/{role}_agreement']:.1f} %")
  return ", ".join(parts)
