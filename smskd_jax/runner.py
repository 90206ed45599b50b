"""One stage: read from the store, or trained into it."""

from collections.abc import Callable
import functools
from pathlib import Path
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.exchange.variables import Given
from smskd_jax.models import spec
from smskd_jax.overview import Estimate
from smskd_jax.plan import Plan
from smskd_jax.runtime import checkpoint, console, interrupt, parallel, workdir
from smskd_jax.runtime.store import Entry
from smskd_jax.runtime.writer import MetricsWriter, mirror_events, read_metrics
from smskd_jax.state import Frozen, TrainState
from smskd_jax.training import evaluate, initial, loop, metrics
from smskd_jax.training import stage as stage_lib

# Streams of a stage's random key: what is drawn from one does not depend on how much is drawn from another.
STEPS, ORDER, VARIABLES, AUX = range(4)


class Runner:
  """Runs the stages of one experiment; keeps what several of them need: compiled networks, teachers' answers."""

  def __init__(
    self, config: dict[str, Any], dataset: Dataset, devices: parallel.Devices, store: Path, estimate: Estimate
  ):
    """Takes a resolved config; computes nothing yet."""
    self._config, self._dataset, self._devices, self._store = config, dataset, devices, store
    self._estimate = estimate
    self._bins = config["evaluate"]["calibration_bins"]
    self._splits = {"test": dataset.test}
    if dataset.validation is not None:
      self._splits["validation"] = dataset.validation
    self._compiled: dict[nn.Module, Callable] = {}
    self._answers: dict[tuple[str, nn.Module], dict[str, np.ndarray]] = {}

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

  def result_of_given(self, name: str, network: nn.Module, given: Given) -> dict[str, Any]:
    """What a network that no stage has trained says of the held-out sets; the store gets its variables."""
    entry = Entry(self._store, given.key)
    with entry.lock(waiting=console.say):
      if entry.result() is None:
        entry.begin({"variables": given.fingerprint}, {"source": given.source})
        checkpoint.save_variables(entry.final, given.variables)
        entry.finish({"fingerprint": given.fingerprint})
    values: dict[str, float] = {}
    for split, logits in self._answer(given.key, network).items():
      of_set = evaluate.evaluate(logits, self._splits[split].label, {}, bins=self._bins)
      values |= {f"{split}/{metric}": value for metric, value in of_set.items()}
    console.say(f"{name}: test accuracy {values['test/accuracy']:.2%}; variables of {given.source}")
    about = {"key": given.key, "fingerprint": given.fingerprint, "source": given.source}
    return {"network": name, **about, "metrics": values}

  def _train(self, plan: Plan, entry: Entry, events: Path, stop: interrupt.Interrupt) -> dict[str, Any]:
    entry.begin(plan.description, {"name": plan.name, **workdir.environment(self._devices)})
    key = jax.random.fold_in(jax.random.key(self._config["seed"]), plan.place)
    state, frozen = self._begin(plan, key)
    checkpoints = checkpoint.Checkpoints(entry.checkpoints, keep=self._config["checkpoint"]["keep"])
    done, state, note = checkpoints.restore(state, warn=console.say) or (0, state, {})
    if done:
      console.say(f"{plan.name}: goes on from step {done} of {plan.budget.steps}")
    writer = MetricsWriter(entry.metrics, events, last_step=done or -1)
    look = functools.partial(self._evaluate, plan)
    if not done:
      writer.write({"step": 0, "epoch": 0.0} | look(stage_lib.learner_variables(state)))
    bar = console.Progress(
      plan.name, plan.budget.steps * plan.budget.batch_size, done * plan.budget.batch_size
    )

    def progress(step: int) -> None:
      bar.advance(plan.budget.batch_size)
      self._estimate.step(plan, step, done)

    batches = functools.partial(
      loop.batches, self._dataset.train, jax.random.fold_in(key, ORDER), plan.budget
    )
    hooks = loop.Hooks(batches, look, writer.write, progress)
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
    checkpoint.save_variables(entry.final, stage_lib.learner_variables(state))
    result = _result(plan, read_metrics(entry.metrics), seconds)
    entry.finish(result)
    return result

  def _begin(self, plan: Plan, key: jax.Array) -> tuple[TrainState, Frozen]:
    """The stage's first state and what it reads, on the devices."""
    image = spec.image(self._dataset.image_shape)
    teachers = tuple(self._final(k) for k in plan.reads.teachers)
    if plan.reads.start is not None:
      variables = self._final(plan.reads.start)
    else:
      variables = initial.init_variables(plan.stage.learner, jax.random.fold_in(key, VARIABLES), image)
    state = initial.init_state(
      plan.stage, jax.random.fold_in(key, AUX), variables, teachers, image, self._dataset.train.label
    )
    frozen = Frozen(
      key=jax.random.fold_in(key, STEPS),
      teachers=teachers,
      reference=None if plan.reads.reference is None else self._final(plan.reads.reference),
    )
    return parallel.replicate(state, self._devices), parallel.replicate(frozen, self._devices)

  def _final(self, key: str) -> Any:
    return checkpoint.load_variables(Entry(self._store, key).final)

  def _evaluate(self, plan: Plan, variables: Any) -> dict[str, float]:
    """The learner on the held-out sets, beside its teachers and its reference, by 'SET/METRIC'."""
    others: dict[str, dict[str, np.ndarray]] = {}
    if plan.reads.teachers:
      each = [self._answer(k, n) for k, n in zip(plan.reads.teachers, plan.stage.teachers, strict=True)]
      others["teacher"] = {name: metrics.ensemble([answer[name] for answer in each]) for name in each[0]}
    if plan.reads.reference is not None:
      others["reference"] = self._answer(plan.reads.reference, plan.stage.learner)
    values: dict[str, float] = {}
    for name, logits in self._predict(plan.stage.learner, variables).items():
      of_set = evaluate.evaluate(
        logits,
        self._splits[name].label,
        {role: answer[name] for role, answer in others.items()},
        bins=self._bins,
      )
      values |= {f"{name}/{metric}": value for metric, value in of_set.items()}
    return values

  def _answer(self, key: str, network: nn.Module) -> dict[str, np.ndarray]:
    """The logits of a frozen network: computed once, for all stages that compare with it."""
    if (key, network) not in self._answers:
      answer = self._predict(network, parallel.replicate(self._final(key), self._devices))
      self._answers[key, network] = answer
    return self._answers[key, network]

  def _predict(self, network: nn.Module, variables: Any) -> dict[str, np.ndarray]:
    """The logits of a network on each held-out set, by its name."""
    if network not in self._compiled:
      normalize = functools.partial(augment.normalize, mean=self._dataset.mean, std=self._dataset.std)
      self._compiled[network] = parallel.compile_predict(
        evaluate.make_predict(network, normalize), self._devices
      )
    count = len(self._devices)
    size = -(-self._config["evaluate"]["batch_size"] // count) * count

    def predict(image: np.ndarray) -> np.ndarray:
      return parallel.joined(self._compiled[network](variables, parallel.split(image, self._devices)))

    return {name: evaluate.logits_of(predict, split.image, size) for name, split in self._splits.items()}


def _result(plan: Plan, lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
  """What is kept of a finished stage."""
  evaluations = [line for line in lines if "test/accuracy" in line]
  best = None
  if "validation/accuracy" in evaluations[-1]:
    # The first of equals, and never chosen by the test set. Step 0 is the stage before.
    best = max(
      (line for line in evaluations if line["step"] > 0), key=lambda line: line["validation/accuracy"]
    )
  images = plan.budget.steps * plan.budget.batch_size
  return {
    "model": plan.description["network"]["model"],
    "methods": [method["name"] for method in plan.config["methods"]],
    "epochs": plan.budget.epochs,
    "steps": plan.budget.steps,
    "forward_passes": {
      "learner": images,
      "teachers": images * len(plan.reads.teachers),
      "reference": images if plan.reads.reference is not None else 0,
    },
    "backward_passes": images,
    "metrics": {"last": evaluations[-1], "best_by_validation": best},
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
