"""One stage of an experiment, with one seed or several: read from the store, or trained into it."""

from collections.abc import Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any

from flax import linen as nn

from smskd_jax.engine.estimates import RunEstimate
from smskd_jax.engine.learner import RunContext, StageTraining
from smskd_jax.engine.plan import StagePlan
from smskd_jax.engine.profiler import Profiler
from smskd_jax.engine.progress import StageProgress
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.runtime import checkpoint, clock, console, distributed, eval_outputs, parallel, signals
from smskd_jax.runtime import seed_parallel as beside_lib
from smskd_jax.runtime.inventory import StoredStage, read_finished
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.writer import mirror_events
from smskd_jax.training import loop
from smskd_jax.training.loop import NonFiniteError, SeedParallelTrainer, SingleTrainer, Trainer


class StageRunner:
  """Runs the stages of experiments that differ in their seed alone."""

  def __init__(
    self, setting: RunContext, beside: parallel.Devices, estimate: RunEstimate, profiler: Profiler
  ):
    """Takes what the stages share, and the devices on which several learners may train; computes nothing yet."""
    self._context, self._beside, self._estimate, self._profiler = setting, beside, estimate, profiler

  def run_stage(
    self, plans: Sequence[StagePlan], events: Sequence[Path], stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    """The results of a stage, one for each seed, with its name.

    Args:
      plans: of the stage, which differ in their seed and in what they read.
      events: for each a folder for TensorBoard events, wherever the result comes from.
      stop: becomes true when the run is asked to end.
    """
    entries = [StageEntry(self._context.store, plan.key) for plan in plans]
    with contextlib.ExitStack() as locks:
      # In one order, or two processes may wait for ever.
      for entry in sorted(entries, key=lambda entry: entry.key):
        locks.enter_context(entry.lock(waiting=console.log))
      stored = self._load_stored(plans, entries)
      results = [one.result for one in stored]
      absent = [i for i, result in enumerate(results) if result is None]
      how = ["read from the store"] * len(plans)
      for some in beside_lib.seed_groups(absent, self._beside):
        trained = self._train([(plans[i], events[i]) for i in some], stop)
        for i, of_seed in zip(some, trained, strict=True):
          results[i], how[i] = of_seed, _format_time(of_seed)
    found = []
    for i, (plan, result) in enumerate(zip(plans, results, strict=True)):
      assert result is not None
      if i not in absent and stored[i].has_metrics:
        mirror_events(entries[i].metrics, events[i])
      name = plan.name if len(plans) == 1 else f"{plan.name} of seed {plan.description['seed']}"
      console.log(f"{name}: {_format_metrics(result['metrics']['last'])}; {how[i]}")
      about = {"name": plan.name, "network": plan.config["network"], "key": plan.key}
      found.append({**about, **result, "forgetting": _with_stage_names(result.get("forgetting", {}), plan)})
    return found

  def evaluate_pretrained(
    self, name: str, network: nn.Module, given: Pretrained, kept_as: Path
  ) -> dict[str, Any]:
    """What a network that no stage has trained says of the held-out sets; the store gets its variables.

    What is kept of its answers goes to a file of the run, and not to the store: its key says nothing of the data.
    """
    entry = StageEntry(self._context.store, given.key)
    normalization: dict[str, Any] = {"normalization": given.normalization and given.normalization._asdict()}
    with entry.lock(waiting=console.log):
      if not distributed.broadcast(entry.state() == "in the store" and not entry.problems()):
        entry.write_metadata({"variables": given.fingerprint}, {"source": given.source, **normalization})
        checkpoint.save_variables(entry.final, given.variables)
        entry.mark_finished({"fingerprint": given.fingerprint})
    said, kept = self._context.evaluator.evaluate_frozen(given.key, network)
    eval_outputs.write(kept_as, kept)
    console.log(
      f"{name}: test accuracy {100 * said.values['test/accuracy']:.2f} %; variables of {given.source}"
    )
    about: dict[str, Any] = {"key": given.key, "fingerprint": given.fingerprint, "source": given.source}
    about |= normalization
    return {"network": name, **about, "metrics": said.values}

  def _load_stored(self, plans: Sequence[StagePlan], entries: Sequence[StageEntry]) -> list[StoredStage]:
    """Verified state of a stage in the store for each seed; damaged outputs are computed again."""
    each = zip(plans, entries, strict=True) if distributed.is_primary() else ()
    found = [read_finished(entry, plan.name, console.log) for plan, entry in each]
    stored = [StoredStage(*one) for one in distributed.broadcast(found)]
    for plan, entry, one in zip(plans, entries, stored, strict=True):
      if not one.has_eval_outputs:
        final = checkpoint.load_variables(entry.verified(entry.final))
        kept, _ = self._context.evaluator.final_outputs(
          plan, parallel.replicate(final, self._context.devices)
        )
        eval_outputs.write(entry.eval_outputs, kept)
        entry.mark_finished(one.result or {})
    return stored

  def _train(
    self, asked: Sequence[tuple[StagePlan, Path]], stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    """Trains a stage with several seeds at once, or with one."""
    learners = [StageTraining(self._context, plan, events, stop) for plan, events in asked]
    if len(learners) == 1:
      (of,) = learners
      self._profiler.profile(of.plan, of.state, of.frozen, of.batches(0))
    with contextlib.ExitStack() as opened:
      for of in learners:
        of.restore()
        opened.callback(of.close)
      # Those that were stopped at different steps go on one by one: a program has one step.
      together = [learners] if len({of.start_step for of in learners}) == 1 else [[of] for of in learners]
      try:
        return [result for some in together for result in self._run_together(some, stop)]
      except Exception as error:
        error.add_note(f"stage {learners[0].plan.name!r}: {learners[0].describe_checkpoint()}")
        raise

  def _run_together(
    self, learners: Sequence[StageTraining], stop: signals.StopRequest
  ) -> list[dict[str, Any]]:
    plan, program, timer = learners[0].plan, self._make_trainer(learners), clock.Clock()
    overhead = sum(of.timer.seconds_in(name) for of in learners for name in (clock.PREPARE, clock.EVALUATE))
    progress = StageProgress(plan, len(learners), timer, self._estimate, overhead)
    first = [of.initial_metrics for of in learners if of.initial_metrics is not None]
    if len(first) == len(learners):
      progress.evaluated(0, first)
    try:
      learning = [of.callbacks() for of in learners]
      seconds = loop.run(program, plan.loop_config, learning, progress, stop, timer)
    except NonFiniteError as error:
      of = learners[error.seed_index]
      error.args = (f"stage {plan.name!r}, {error}; {of.describe_checkpoint()}",)
      raise
    except signals.Interrupted as error:
      error.args = (f"stage {plan.name!r}, {error}; {learners[0].describe_checkpoint()}",)
      raise
    finally:
      progress.close()
    results = [of.finish(program.state(i), seconds[i], len(learners)) for i, of in enumerate(learners)]
    stop.set_unsaved(False)
    return results

  def _make_trainer(self, learners: Sequence[StageTraining]) -> Trainer:
    stage, devices = learners[0].plan.stage, self._context.devices
    if len(learners) > 1:
      return SeedParallelTrainer(stage, self._beside[: len(learners)], [of.seed_state() for of in learners])
    (of,) = learners
    return SingleTrainer(stage, devices, of.take_state(), parallel.replicate(of.frozen, devices))


def _format_time(result: dict[str, Any]) -> str:
  compiling = result["seconds_by_phase"].get(clock.COMPILE, 0.0)
  return (
    f"{console.format_duration(result['seconds'])}, {console.format_duration(compiling)} of them compiling"
  )


def _format_metrics(last: dict[str, float]) -> str:
  words = [f"test accuracy {100 * last['test/accuracy']:.2f} %"]
  for role in ("teacher", "reference"):
    if f"test/{role}_agreement" in last:
      words.append(f"agrees with its {role} on {100 * last[f'test/{role}_agreement']:.1f} %")
  return ", ".join(words)


def _with_stage_names(
  forgetting: Mapping[str, Sequence[Mapping[str, Any]]], plan: StagePlan
) -> dict[str, list[dict[str, Any]]]:
  """The records of forgetting with the names that this run gives to the earlier stages: 'stage'."""
  names = {earlier.key: earlier.name for earlier in plan.ancestors}
  return {
    split: [{"stage": names[record["key"]], **record} for record in records]
    for split, records in forgetting.items()
  }
