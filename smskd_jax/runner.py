"""One stage of an experiment, with one seed or several: read from the store, or trained into it."""

from collections.abc import Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any

from flax import linen as nn

from smskd_jax.estimates import RunEstimate
from smskd_jax.exchange.variables import Given
from smskd_jax.learner import Learner, Setting
from smskd_jax.plan import Plan
from smskd_jax.profiling import Profiler
from smskd_jax.progress import StageProgress
from smskd_jax.runtime import answers, checkpoint, clock, console, interrupt, parallel, processes
from smskd_jax.runtime import beside as beside_lib
from smskd_jax.runtime.recovery import Stored, look_up
from smskd_jax.runtime.store import Entry
from smskd_jax.runtime.writer import mirror_events
from smskd_jax.training import loop
from smskd_jax.training.program import Alone, Program, Together
from smskd_jax.training.window import NonFinite


class Runner:
  """Runs the stages of experiments that differ in their seed alone."""

  def __init__(self, setting: Setting, beside: parallel.Devices, estimate: RunEstimate, profiler: Profiler):
    """Takes what the stages share, and the devices on which several learners may train; computes nothing yet."""
    self._setting, self._beside, self._estimate, self._profiler = setting, beside, estimate, profiler

  def results_of(
    self, plans: Sequence[Plan], events: Sequence[Path], stop: interrupt.Interrupt
  ) -> list[dict[str, Any]]:
    """The results of a stage, one for each seed, with its name.

    Args:
      plans: of the stage, which differ in their seed and in what they read.
      events: for each a folder for TensorBoard events, wherever the result comes from.
      stop: becomes true when the run is asked to end.
    """
    entries = [Entry(self._setting.store, plan.key) for plan in plans]
    with contextlib.ExitStack() as locks:
      # In one order, or two processes may wait for ever.
      for entry in sorted(entries, key=lambda entry: entry.key):
        locks.enter_context(entry.lock(waiting=console.say))
      stored = self._stored(plans, entries)
      results = [one.result for one in stored]
      absent = [i for i, result in enumerate(results) if result is None]
      how = ["read from the store"] * len(plans)
      for some in beside_lib.shifts(absent, self._beside):
        trained = self._train([(plans[i], events[i]) for i in some], stop)
        for i, of_seed in zip(some, trained, strict=True):
          results[i], how[i] = of_seed, _time_in_words(of_seed)
    found = []
    for i, (plan, result) in enumerate(zip(plans, results, strict=True)):
      assert result is not None
      if i not in absent and stored[i].metrics:
        mirror_events(entries[i].metrics, events[i])
      name = plan.name if len(plans) == 1 else f"{plan.name} of seed {plan.description['seed']}"
      console.say(f"{name}: {_in_words(result['metrics']['last'])}; {how[i]}")
      about = {"name": plan.name, "network": plan.config["learner"], "key": plan.key}
      found.append({**about, **result, "forgetting": _named(result.get("forgetting", {}), plan)})
    return found

  def result_of_given(self, name: str, network: nn.Module, given: Given, kept_as: Path) -> dict[str, Any]:
    """What a network that no stage has trained says of the held-out sets; the store gets its variables.

    What is kept of its answers goes to a file of the run, and not to the store: its key says nothing of the data.
    """
    entry = Entry(self._setting.store, given.key)
    normalization: dict[str, Any] = {"normalization": given.normalization and given.normalization._asdict()}
    with entry.lock(waiting=console.say):
      if not processes.agree(entry.state() == "in the store" and not entry.problems()):
        entry.begin({"variables": given.fingerprint}, {"source": given.source, **normalization})
        checkpoint.save_variables(entry.final, given.variables)
        entry.finish({"fingerprint": given.fingerprint})
    said, kept = self._setting.held_out.of_frozen(given.key, network)
    answers.write(kept_as, kept)
    console.say(
      f"{name}: test accuracy {100 * said.values['test/accuracy']:.2f} %; variables of {given.source}"
    )
    about: dict[str, Any] = {"key": given.key, "fingerprint": given.fingerprint, "source": given.source}
    about |= normalization
    return {"network": name, **about, "metrics": said.values}

  def _stored(self, plans: Sequence[Plan], entries: Sequence[Entry]) -> list[Stored]:
    """Verified state of a stage in the store for each seed; damaged outputs are computed again."""
    each = zip(plans, entries, strict=True) if processes.is_lead() else ()
    found = [look_up(entry, plan.name, console.say) for plan, entry in each]
    stored = [Stored(*one) for one in processes.agree(found)]
    for plan, entry, one in zip(plans, entries, stored, strict=True):
      if not one.answers:
        final = checkpoint.load_variables(entry.checked(entry.final))
        kept, _ = self._setting.held_out.at_end(plan, parallel.replicate(final, self._setting.devices))
        answers.write(entry.answers, kept)
        entry.finish(one.result or {})
    return stored

  def _train(self, asked: Sequence[tuple[Plan, Path]], stop: interrupt.Interrupt) -> list[dict[str, Any]]:
    """Trains a stage with several seeds at once, or with one."""
    learners = [Learner(self._setting, plan, events, stop) for plan, events in asked]
    if len(learners) == 1:
      (of,) = learners
      self._profiler.look(of.plan, of.state, of.frozen, of.batches(0))
    with contextlib.ExitStack() as opened:
      for of in learners:
        of.open()
        opened.callback(of.close)
      # Those that were stopped at different steps go on one by one: a program has one step.
      together = [learners] if len({of.done for of in learners}) == 1 else [[of] for of in learners]
      try:
        return [result for some in together for result in self._run(some, stop)]
      except Exception as error:
        error.add_note(f"stage {learners[0].plan.name!r}: {learners[0].saved()}")
        raise

  def _run(self, learners: Sequence[Learner], stop: interrupt.Interrupt) -> list[dict[str, Any]]:
    plan, program, timer = learners[0].plan, self._program(learners), clock.Clock()
    overhead = sum(of.timer.of(name) for of in learners for name in (clock.PREPARE, clock.EVALUATE))
    progress = StageProgress(plan, len(learners), timer, self._estimate, overhead)
    first = [of.first for of in learners if of.first is not None]
    if len(first) == len(learners):
      progress.evaluated(0, first)
    try:
      learning = [of.learning() for of in learners]
      seconds = loop.run(program, plan.budget, learning, progress, stop, timer)
    except NonFinite as error:
      of = learners[error.learner]
      error.args = (f"stage {plan.name!r}, {error}; {of.saved()}",)
      raise
    except interrupt.Interrupted as error:
      error.args = (f"stage {plan.name!r}, {error}; {learners[0].saved()}",)
      raise
    finally:
      progress.close()
    results = [of.finish(program.state(i), seconds[i], len(learners)) for i, of in enumerate(learners)]
    stop.set_unsaved(False)
    return results

  def _program(self, learners: Sequence[Learner]) -> Program:
    stage, devices = learners[0].plan.stage, self._setting.devices
    if len(learners) > 1:
      return Together(stage, self._beside[: len(learners)], [of.beside() for of in learners])
    (of,) = learners
    return Alone(stage, devices, of.take_state(), parallel.replicate(of.frozen, devices))


def _time_in_words(result: dict[str, Any]) -> str:
  compiling = result["seconds_by_phase"].get(clock.COMPILE, 0.0)
  return f"{console.duration(result['seconds'])}, {console.duration(compiling)} of them compiling"


def _in_words(last: dict[str, float]) -> str:
  words = [f"test accuracy {100 * last['test/accuracy']:.2f} %"]
  for role in ("teacher", "reference"):
    if f"test/{role}_agreement" in last:
      words.append(f"agrees with its {role} on {100 * last[f'test/{role}_agreement']:.1f} %")
  return ", ".join(words)


def _named(
  forgetting: Mapping[str, Sequence[Mapping[str, Any]]], plan: Plan
) -> dict[str, list[dict[str, Any]]]:
  """The records of forgetting with the names that this run gives to the earlier stages: 'stage'."""
  names = {earlier.key: earlier.name for earlier in plan.earlier}
  return {
    split: [{"stage": names[record["key"]], **record} for record in records]
    for split, records in forgetting.items()
  }
