"""What networks say of the sets that nobody trains on, beside their teachers, their reference and their own past."""

from collections.abc import Callable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset, ImageArray, Split
from smskd_jax.engine.forgetting import EarlierStageLosses
from smskd_jax.engine.plan import StagePlan
from smskd_jax.runtime import checkpoint, eval_outputs, parallel
from smskd_jax.runtime.eval_outputs import EvalOutputs
from smskd_jax.runtime.store import StageEntry
from smskd_jax.training import cka, evaluate, metrics

LogitsBySplit = dict[str, np.ndarray]  # logits [n, k], by the name of the set


class EvalResult(NamedTuple):
  """An evaluation."""

  values: dict[str, float]  # by 'SET/METRIC'
  logits: LogitsBySplit

  @property
  def predictions(self) -> LogitsBySplit:
    """What the network takes each image for, [n]."""
    return {name: np.argmax(of_set, axis=-1) for name, of_set in self.logits.items()}


class Evaluator:
  """Evaluates networks; keeps their compiled programs, and the answers of those that are frozen."""

  def __init__(self, dataset: Dataset, devices: parallel.Devices, settings: Mapping[str, Any], store: Path):
    """Takes the config's section `evaluate`; computes nothing yet."""
    self._devices, self._settings, self._store = devices, settings, store
    self._normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    self.splits = {"test": dataset.test}
    if dataset.validation is not None:
      self.splits["validation"] = dataset.validation
    self._earlier_losses = EarlierStageLosses(dataset, devices, settings, store)
    self._index = evaluate.evenly_spaced(settings["feature_images"], len(dataset.test.label))
    self._compiled: dict[tuple[Callable, nn.Module], Callable] = {}
    self._outputs_cache: dict[tuple[str, nn.Module], EvalOutputs] = {}

  def evaluate_frozen(self, key: str, network: nn.Module) -> tuple[EvalResult, EvalOutputs]:
    """An evaluation of what lies under a key, beside nothing, and what is kept of it."""
    return self._metrics(self._frozen_logits(key, network), {}), self._frozen_outputs(key, network)

  def evaluate_stage(self, plan: StagePlan, variables: Any) -> EvalResult:
    """An evaluation of a stage's learner: beside its teachers, its reference, and what its earlier stages left.

    The first of these is 'earlier_1': 'earlier_1_lost' is the share of the images that it got right and the learner
    gets wrong, 'earlier_1_iou' the IoU of the sets of images that both get right.
    """
    said = self._metrics(self._predict(plan.stage.student, variables), self._compared_logits(plan))
    return said._replace(values=said.values | self._earlier_losses.evaluate(plan, variables))

  def final_outputs(
    self, plan: StagePlan, variables: Any, logits: LogitsBySplit | None = None
  ) -> tuple[EvalOutputs, dict[str, Any]]:
    """Final outputs of a stage's learner, and its metrics by class, its forgetting and the similarity of its features.

    The last by the role of the network compared with: 'teacher', 'teacher_2', ..., 'reference'. The logits of these
    variables need not be given.
    """
    kept = self._compute_outputs(plan.stage.student, variables, logits)
    others, by_class = self._compared_logits(plan), {}
    for name, of_set in eval_outputs.logits(kept).items():
      compared = {role: answer[name] for role, answer in others.items()}
      by_class[name] = evaluate.per_class_metrics(of_set, self.splits[name].label, compared)
    roles = {
      f"teacher_{i}" if i > 1 else "teacher": self._frozen_outputs(key, network)
      for i, (key, network) in enumerate(zip(plan.inputs.teachers, plan.stage.teachers, strict=True), start=1)
    }
    if plan.inputs.reference is not None:
      roles["reference"] = self._frozen_outputs(plan.inputs.reference, plan.stage.reference_module)
    alike = {
      role: cka.cka_table(eval_outputs.features(kept), eval_outputs.features(other))._asdict()
      for role, other in roles.items()
      if len(self._index) > 1
    }
    return kept, {"by_class": by_class, "forgetting": self._forgetting(plan, kept), "similarity": alike}

  def evaluate_extra_sets(
    self, plans: Sequence[StagePlan], sets: Mapping[str, Callable[[], Split]]
  ) -> list[dict[str, float]]:
    """The accuracy of each stage's network on each further test set, by its name."""
    values: list[dict[str, float]] = [{} for _ in plans]
    for name, make in sets.items():
      split = make()
      for plan, of_plan in zip(plans, values, strict=True):
        logits = self._apply(
          evaluate.make_predict, plan.stage.student, self._load_variables(plan.key), split.image
        )
        of_plan[name] = metrics.top_k_accuracy(logits, split.label, 1)
    return values

  def _forgetting(self, plan: StagePlan, kept: EvalOutputs) -> dict[str, list[dict[str, Any]]]:
    """By set, what a stage's network has kept, forgotten and gained since each stage that it goes on from.

    Earlier stages are told by their keys: their names are not part of what a store's entry depends on.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, of_set in eval_outputs.logits(kept).items():
      found[name] = []
      for earlier in plan.ancestors:
        before = self._frozen_logits(earlier.key, plan.stage.student)[name]
        overlap = metrics.overlap(of_set, before, self.splits[name].label)
        found[name].append({"key": earlier.key, **overlap._asdict(), "iou": overlap.iou})
    return found

  def _metrics(self, logits: LogitsBySplit, others: Mapping[str, LogitsBySplit]) -> EvalResult:
    values: dict[str, float] = {}
    for name, of_set in logits.items():
      compared = {role: answer[name] for role, answer in others.items()}
      label, bins = self.splits[name].label, self._settings["calibration_bins"]
      found = evaluate.classification_metrics(of_set, label, compared, bins=bins)
      values |= {f"{name}/{metric}": value for metric, value in found.items()}
    return EvalResult(values, logits)

  def _compared_logits(self, plan: StagePlan) -> dict[str, LogitsBySplit]:
    """The answers that a stage's learner is compared with, by their role; of several teachers those of all as one."""
    others = {}
    if plan.inputs.teachers:
      each = [
        self._frozen_logits(k, n) for k, n in zip(plan.inputs.teachers, plan.stage.teachers, strict=True)
      ]
      others["teacher"] = {
        name: metrics.ensemble_logits([answer[name] for answer in each]) for name in each[0]
      }
    if plan.inputs.reference is not None:
      others["reference"] = self._frozen_logits(plan.inputs.reference, plan.stage.reference_module)
    for i, earlier in enumerate(plan.ancestors, start=1):
      others[f"earlier_{i}"] = self._frozen_logits(earlier.key, plan.stage.student)
    return others

  def _frozen_logits(self, key: str, network: nn.Module) -> LogitsBySplit:
    """The logits of a frozen network."""
    return eval_outputs.logits(self._frozen_outputs(key, network))

  def _frozen_outputs(self, key: str, network: nn.Module) -> EvalOutputs:
    """What is kept of a frozen network: read where its stage has left it, else computed, once for all that ask."""
    if (key, network) not in self._outputs_cache:
      entry = StageEntry(self._store, key)
      whole = entry.eval_outputs.is_file() and not entry.problems(entry.eval_outputs.name)
      found = (
        eval_outputs.read(entry.eval_outputs)
        if whole
        else self._compute_outputs(network, self._load_variables(key))
      )
      self._outputs_cache[key, network] = found
    return self._outputs_cache[key, network]

  def _compute_outputs(
    self, network: nn.Module, variables: Any, logits: LogitsBySplit | None = None
  ) -> EvalOutputs:
    """What is kept of a network; see runtime/eval_outputs.py."""
    kept = {f"{name}/logits": of for name, of in (logits or self._predict(network, variables)).items()}
    if not len(self._index):
      return kept
    image = self.splits["test"].image[self._index]
    features = self._apply(evaluate.make_feature_fn, network, variables, image)
    return kept | {"index": self._index} | {f"test/{name}": of for name, of in features.items()}

  def _load_variables(self, key: str) -> Any:
    entry = StageEntry(self._store, key)
    return parallel.replicate(checkpoint.load_variables(entry.verified(entry.final)), self._devices)

  def _predict(self, network: nn.Module, variables: Any) -> LogitsBySplit:
    """The logits of a network on each held-out set."""
    say = functools.partial(self._apply, evaluate.make_predict, network, variables)
    return {name: say(split.image) for name, split in self.splits.items()}

  def _apply(
    self, make: Callable[..., evaluate.PredictFn], network: nn.Module, variables: Any, image: ImageArray
  ) -> Any:
    """What a network of replicated variables says of a set of images: a tree of [n, ...]."""
    if (make, network) not in self._compiled:
      self._compiled[make, network] = parallel.compile_predict(make(network, self._normalize), self._devices)
    compiled, count = self._compiled[make, network], len(self._devices)
    size = -(-min(self._settings["batch_size"], len(image)) // count) * count

    def predict(places: np.ndarray) -> Any:
      said = compiled(variables, image[parallel.shard(places, self._devices)])  # read where they are needed
      return jax.tree.map(lambda x: parallel.unshard(x, self._devices), said)

    return evaluate.map_in_batches(predict, len(image), size)
