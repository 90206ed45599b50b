"""Evaluation on validation and test sets, with comparisons to other networks.

These are teachers, reference and earlier stages.
"""

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

LogitsBySplit = dict[str, np.ndarray]  # name of the set -> logits [n, k]


class EvalResult(NamedTuple):
  """Metrics and logits of an evaluation."""

  values: dict[str, float]  # 'SET/METRIC' -> value
  logits: LogitsBySplit

  @property
  def predictions(self) -> LogitsBySplit:
    """Predicted class of each image, [n], by the name of the set."""
    return {name: np.argmax(logits, axis=-1) for name, logits in self.logits.items()}


class Evaluator:
  """Evaluates networks; keeps compiled functions, and the outputs of frozen networks."""

  def __init__(self, dataset: Dataset, devices: parallel.Devices, settings: Mapping[str, Any], store: Path):
    """Computes nothing; `settings` is the section `evaluate` of the config."""
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
    """Metrics and outputs of the network under a key, without comparisons."""
    return self._metrics(self._frozen_logits(key, network), {}), self._frozen_outputs(key, network)

  def evaluate_stage(self, plan: StagePlan, variables: Any, *, is_initial: bool = False) -> EvalResult:
    """Evaluates a stage's network and compares it with other networks.

    These are its teachers, its reference and its earlier stages.

    'earlier_1' is the first earlier stage: 'earlier_1_regressions' is the fraction of images that the earlier stage
    classifies correctly and the network does not, 'earlier_1_iou' the IoU of their sets of correctly classified images.

    Args:
      plan: of the stage.
      variables: replicated on the devices.
      is_initial: the variables are those before the first step. If they are the final ones of an earlier stage, the
        outputs of that stage are reused.
    """
    network = plan.stage.student
    if is_initial and plan.inputs.init is not None and not plan.changes_initial_variables:
      logits = self._frozen_logits(plan.inputs.init, network)
    else:
      logits = self._predict(network, variables)
    said = self._metrics(logits, self._compared_logits(plan))
    return said._replace(values=said.values | self._earlier_losses.evaluate(plan, variables))

  def final_outputs(
    self, plan: StagePlan, variables: Any, logits: LogitsBySplit | None = None
  ) -> tuple[EvalOutputs, dict[str, Any]]:
    """Outputs of a stage's final network, and metrics of classes, forgetting and features.

    Args:
      plan: of the stage.
      variables: replicated on the devices.
      logits: of these variables, if they are known.

    Returns:
      (outputs, {'by_class', 'forgetting', 'similarity'}); similarity by the role of the compared network: 'teacher',
      'teacher_2', ..., 'reference'.
    """
    outputs = self._compute_outputs(plan.stage.student, variables, logits)
    others, by_class = self._compared_logits(plan), {}
    for name, set_logits in eval_outputs.logits(outputs).items():
      compared = {role: other[name] for role, other in others.items()}
      by_class[name] = evaluate.per_class_metrics(set_logits, self.splits[name].label, compared)
    roles = {
      f"teacher_{i}" if i > 1 else "teacher": self._frozen_outputs(key, network)
      for i, (key, network) in enumerate(zip(plan.inputs.teachers, plan.stage.teachers, strict=True), start=1)
    }
    if plan.inputs.reference is not None:
      roles["reference"] = self._frozen_outputs(plan.inputs.reference, plan.stage.reference_module)
    similarity = {
      role: cka.cka_table(eval_outputs.features(outputs), eval_outputs.features(other))._asdict()
      for role, other in roles.items()
      if len(self._index) > 1
    }
    return outputs, {
      "by_class": by_class,
      "forgetting": self._forgetting(plan, outputs),
      "similarity": similarity,
    }

  def evaluate_extra_sets(
    self, plans: Sequence[StagePlan], sets: Mapping[str, Callable[[], Split]]
  ) -> list[dict[str, float]]:
    """Accuracy of each stage's network on each extra test set, by the name of the set."""
    values: list[dict[str, float]] = [{} for _ in plans]
    for name, make in sets.items():
      split = make()
      for plan, accuracies in zip(plans, values, strict=True):
        logits = self._apply(
          evaluate.make_predict, plan.stage.student, self._load_variables(plan.key), split.image
        )
        accuracies[name] = metrics.top_k_accuracy(logits, split.label, 1)
    return values

  def _forgetting(self, plan: StagePlan, outputs: EvalOutputs) -> dict[str, list[dict[str, Any]]]:
    """By set, correct predictions kept, forgotten and gained since each earlier stage.

    Records name earlier stages by their keys, because a store entry does not depend on names.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    for name, set_logits in eval_outputs.logits(outputs).items():
      records[name] = []
      for ancestor in plan.ancestors:
        earlier = self._frozen_logits(ancestor.key, plan.stage.student)[name]
        overlap = metrics.overlap(set_logits, earlier, self.splits[name].label)
        records[name].append({"key": ancestor.key, **overlap._asdict(), "iou": overlap.iou})
    return records

  def _metrics(self, logits: LogitsBySplit, others: Mapping[str, LogitsBySplit]) -> EvalResult:
    values: dict[str, float] = {}
    for name, set_logits in logits.items():
      compared = {role: other[name] for role, other in others.items()}
      label, bins = self.splits[name].label, self._settings["calibration_bins"]
      computed = evaluate.classification_metrics(set_logits, label, compared, bins=bins)
      values |= {f"{name}/{metric}": value for metric, value in computed.items()}
    return EvalResult(values, logits)

  def _compared_logits(self, plan: StagePlan) -> dict[str, LogitsBySplit]:
    """Logits that a stage's network is compared with, by role.

    Several teachers are one ensemble.
    """
    others = {}
    if plan.inputs.teachers:
      pairs = zip(plan.inputs.teachers, plan.stage.teachers, strict=True)
      teachers = [self._frozen_logits(key, network) for key, network in pairs]
      others["teacher"] = {
        name: metrics.ensemble_logits([one[name] for one in teachers]) for name in teachers[0]
      }
    if plan.inputs.reference is not None:
      others["reference"] = self._frozen_logits(plan.inputs.reference, plan.stage.reference_module)
    for i, ancestor in enumerate(plan.ancestors, start=1):
      others[f"earlier_{i}"] = self._frozen_logits(ancestor.key, plan.stage.student)
    return others

  def _frozen_logits(self, key: str, network: nn.Module) -> LogitsBySplit:
    """Logits of a frozen network."""
    return eval_outputs.logits(self._frozen_outputs(key, network))

  def _frozen_outputs(self, key: str, network: nn.Module) -> EvalOutputs:
    """Outputs of a frozen network, read from its store entry or computed once."""
    if (key, network) not in self._outputs_cache:
      entry = StageEntry(self._store, key)
      if entry.eval_outputs.is_file() and not entry.problems(entry.eval_outputs.name):
        outputs = eval_outputs.read(entry.eval_outputs)
      else:
        outputs = self._compute_outputs(network, self._load_variables(key))
      self._outputs_cache[key, network] = outputs
    return self._outputs_cache[key, network]

  def _compute_outputs(
    self, network: nn.Module, variables: Any, logits: LogitsBySplit | None = None
  ) -> EvalOutputs:
    """Outputs of a network that eval_outputs.npz stores; see runtime/eval_outputs.py."""
    logits = logits or self._predict(network, variables)
    outputs = {f"{name}/logits": array for name, array in logits.items()}
    if not len(self._index):
      return outputs
    image = self.splits["test"].image[self._index]
    features = self._apply(evaluate.make_feature_fn, network, variables, image)
    return outputs | {"index": self._index} | {f"test/{name}": array for name, array in features.items()}

  def _load_variables(self, key: str) -> Any:
    return parallel.replicate(checkpoint.load_final(self._store, key), self._devices)

  def _predict(self, network: nn.Module, variables: Any) -> LogitsBySplit:
    """Logits of a network on each validation and test set."""
    predict = functools.partial(self._apply, evaluate.make_predict, network, variables)
    return {name: predict(split.image) for name, split in self.splits.items()}

  def _apply(
    self, make: Callable[..., evaluate.PredictFn], network: nn.Module, variables: Any, image: ImageArray
  ) -> Any:
    """Outputs of a network with replicated variables for a set of images: a tree of [n, ...]."""
    if (make, network) not in self._compiled:
      self._compiled[make, network] = parallel.compile_predict(make(network, self._normalize), self._devices)
    compiled, count = self._compiled[make, network], len(self._devices)
    size = -(-min(self._settings["batch_size"], len(image)) // count) * count

    def predict(indices: np.ndarray) -> Any:
      outputs = compiled(
        variables, image[parallel.shard(indices, self._devices)]
      )  # images are read when needed
      return jax.tree.map(lambda x: parallel.unshard(x, self._devices), outputs)

    return evaluate.map_in_batches(predict, len(image), size)
