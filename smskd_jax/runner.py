"""One stage: read from the store, or trained into it."""

import functools
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax

from smskd_jax import keeping, recall
from smskd_jax.data.dataset import Dataset
from smskd_jax.exchange.variables import Given
from smskd_jax.heldout import HeldOut
from smskd_jax.models import spec
from smskd_jax.overview import Estimate
from smskd_jax.plan import Plan
from smskd_jax.profiling import Profiler
from smskd_jax.runtime import answers, checkpoint, console, interrupt, parallel, workdir
from smskd_jax.runtime.choices import Choices
from smskd_jax.runtime.store import Entry
from smskd_jax.runtime.writer import MetricsWriter, mirror_events, read_metrics
from smskd_jax.state import Frozen, TrainState
from smskd_jax.training import batches, initial, loop
from smskd_jax.training import stage as stage_lib

# Streams of a stage's random key: what is drawn from one does not depend on how much is drawn from another.
STEPS, ORDER, VARIABLES, AUX = range(4)


class Runner:
  """Runs the stages of one experiment; keeps what several of them need: compiled networks, teachers' answers."""

  def __init__(
    self,
    config: dict[str, Any],
    dataset: Dataset,
    devices: parallel.Devices,
    store: Path,
    estimate: Estimate,
    profiler: Profiler,
  ):
    """Takes a resolved config; computes nothing yet."""
    self._config, self._dataset, self._devices, self._store = config, dataset, devices, store
    self._estimate, self._profiler = estimate, profiler
    self.held_out = HeldOut(dataset, devices, config["evaluate"], store)

  def result_of(self, plan: Plan, events: Path, stop: interrupt.Interrupt) -> dict[str, Any]:
    """A stage's result, with its name; TensorBoard events go to `events`, wherever the result comes from."""
    entry = Entry(self._store, plan.key)
    with entry.lock(waiting=console.say):
      result, how = entry.result(), "read from the store"
      if result is None:
        result = self._train(plan, entry, events, stop)
        how = console.duration(result["seconds"])
      else:
        mirror_events(entry.metrics, events)
    console.say(f"{plan.name}: {_in_words(result['metrics']['last'])}; {how}")
    return {"name": plan.name, "network": plan.config["learner"], "key": plan.key, **result}

  def result_of_given(self, name: str, network: nn.Module, given: Given, kept_as: Path) -> dict[str, Any]:
    """What a network that no stage has trained says of the held-out sets; the store gets its variables.

    What is kept of its answers goes to a file of the run, and not to the store: its key says nothing of the data.
    """
    entry = Entry(self._store, given.key)
    with entry.lock(waiting=console.say):
      if entry.result() is None:
        entry.begin({"variables": given.fingerprint}, {"source": given.source})
        checkpoint.save_variables(entry.final, given.variables)
        entry.finish({"fingerprint": given.fingerprint})
    (values, _), kept = self.held_out.of_frozen(given.key, network)
    answers.write(kept_as, kept)
    console.say(f"{name}: test accuracy {values['test/accuracy']:.2%}; variables of {given.source}")
    about = {"key": given.key, "fingerprint": given.fingerprint, "source": given.source}
    return {"network": name, **about, "metrics": values}

  def _train(self, plan: Plan, entry: Entry, events: Path, stop: interrupt.Interrupt) -> dict[str, Any]:
    entry.begin(plan.description, {"name": plan.name, **workdir.environment(self._devices)})
    key = jax.random.fold_in(jax.random.key(self._config["seed"]), plan.place)
    state, frozen, asked = self._begin(plan, key)
    order = functools.partial(batches.draw, plan.drawing, jax.random.fold_in(key, ORDER))
    self._profiler.look(plan, state, frozen, order(0))
    checkpoints = checkpoint.Checkpoints(entry.checkpoints, keep=self._config["checkpoint"]["keep"])
    done, state, note = checkpoints.restore(state, warn=console.say) or (0, state, {})
    if done:
      console.say(f"{plan.name}: goes on from step {done} of {plan.budget.steps}")
    writer = MetricsWriter(entry.metrics, events, last_step=done or -1)
    look = functools.partial(self._look, plan, entry, Choices(entry.choices, last_step=done or -1))
    if not done:
      writer.write({"step": 0, "epoch": 0.0} | look(0, stage_lib.learner_variables(state)))
    bar = console.Progress(
      plan.name, plan.budget.steps * plan.budget.batch_size, done * plan.budget.batch_size
    )

    def progress(step: int, just_now: int) -> None:
      bar.advance(just_now * plan.budget.batch_size)
      self._estimate.step(plan, step)

    hooks = loop.Hooks(order, look, writer.write, progress)
    try:
      state, seconds = loop.run(
        plan.stage, plan.budget, state, frozen, self._devices, checkpoints, hooks, stop, note
      )
    except (loop.NonFinite, interrupt.Interrupted) as error:
      error.args = (f"stage {plan.name!r}, {error}; {_saved(checkpoints)}",)
      raise
    finally:
      bar.close()
      checkpoints.close()
      writer.close()
    chosen = checkpoint.load_variables(entry.best) if plan.config["select"] == "validation" else None
    final = chosen or stage_lib.learner_variables(state)
    checkpoint.save_variables(entry.final, final)
    recall.keep(entry, state)
    kept, told = self.held_out.at_end(plan, parallel.replicate(final, self._devices))
    answers.write(entry.answers, kept)
    result = _result(plan, read_metrics(entry.metrics), seconds + asked.seconds, asked.forward_passes) | told
    entry.finish(result)
    return result

  def _begin(self, plan: Plan, key: jax.Array) -> tuple[TrainState, Frozen, keeping.Asked]:
    """The stage's first state and what it reads, on the devices; and what it took to have it."""
    image = spec.image(self._dataset.image_shape)
    teachers = tuple(self._final(k) for k in plan.reads.teachers)
    if plan.reads.start is not None:
      variables = self._final(plan.reads.start)
    else:
      variables = initial.init_variables(plan.stage.learner, jax.random.fold_in(key, VARIABLES), image)
    state = initial.init_state(
      plan.stage, jax.random.fold_in(key, AUX), variables, teachers, image, self._dataset.train.label
    )
    asked = keeping.Asked(teachers, 0, 0.0)
    if plan.stage.number:
      size = self._config["evaluate"]["batch_size"]
      stages = self._config["stages"]
      asked = keeping.ask(plan, self._dataset, self._devices, self._store, size, stages)
    frozen = Frozen(
      key=jax.random.fold_in(key, STEPS),
      teachers=asked.teachers,
      reference=None if plan.reads.reference is None else self._final(plan.reads.reference),
    )
    return parallel.replicate(state, self._devices), parallel.replicate(frozen, self._devices), asked

  def _final(self, key: str) -> Any:
    return checkpoint.load_variables(Entry(self._store, key).final)

  def _look(self, plan: Plan, entry: Entry, choices: Choices, step: int, variables: Any) -> dict[str, float]:
    """Evaluates, and keeps what the network takes each image for.

    Where the validation set selects, variables that are better than all before are kept too.
    """
    values, chosen = self.held_out.of_learner(plan, variables)
    choices.write(step, chosen)
    if plan.config["select"] == "validation" and step:
      before = [
        line.get("validation/accuracy", 0.0) for line in read_metrics(entry.metrics) if line["step"] > 0
      ]
      if values["validation/accuracy"] > max(before, default=-1.0):
        checkpoint.save_variables(entry.best, variables)
    return values


def _result(plan: Plan, lines: list[dict[str, Any]], seconds: float, kept: int) -> dict[str, Any]:
  """What is kept of a finished stage; `kept` forward passes of its teachers were computed before it."""
  evaluations = [line for line in lines if "test/accuracy" in line]
  best = None
  if "validation/accuracy" in evaluations[-1]:
    # The first of equals, and never chosen by the test set. Step 0 is the stage before.
    best = max(
      (line for line in evaluations if line["step"] > 0), key=lambda line: line["validation/accuracy"]
    )
  # What the test set would have chosen: reported, as the survey does, and used for nothing.
  oracle = max((line for line in evaluations if line["step"] > 0), key=lambda line: line["test/accuracy"])
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
    "metrics": {"last": evaluations[-1], "best_by_validation": best, "oracle": oracle},
    "reads": plan.reads._asdict(),
    "seconds": seconds,
  }


def _in_words(last: dict[str, float]) -> str:
  words = [f"test accuracy {last['test/accuracy']:.2%}"]
  for role in ("teacher", "reference"):
    if f"test/{role}_agreement" in last:
      words.append(f"agrees with its {role} on {last[f'test/{role}_agreement']:.1%}")
  return ", ".join(words)


def _saved(checkpoints: checkpoint.Checkpoints) -> str:
  steps = checkpoints.steps()
  return f"the last checkpoint is of step {max(steps)}" if steps else "there is no checkpoint yet"
