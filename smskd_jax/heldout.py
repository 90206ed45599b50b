"""What networks say of the sets that nobody trains on, beside their teachers, their reference and their own past."""

from collections.abc import Callable, Mapping, Sequence
import functools
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset, Images, Split
from smskd_jax.plan import Plan
from smskd_jax.recall import Recall
from smskd_jax.runtime import answers, checkpoint, parallel
from smskd_jax.runtime.answers import Answers
from smskd_jax.runtime.store import Entry
from smskd_jax.training import evaluate, metrics, similarity

BySplit = dict[str, np.ndarray]  # logits [n, k], by the name of the set


class Said(NamedTuple):
  """An evaluation."""

  values: dict[str, float]  # by 'SET/METRIC'
  logits: BySplit

  @property
  def choices(self) -> BySplit:
    """What the network takes each image for, [n]."""
    return {name: np.argmax(of_set, axis=-1) for name, of_set in self.logits.items()}


class HeldOut:
  """Evaluates networks; keeps their compiled programs, and the answers of those that are frozen."""

  def __init__(self, dataset: Dataset, devices: parallel.Devices, settings: Mapping[str, Any], store: Path):
    """Takes the config's section `evaluate`; computes nothing yet."""
    self._devices, self._settings, self._store = devices, settings, store
    self._normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    self.splits = {"test": dataset.test}
    if dataset.validation is not None:
      self.splits["validation"] = dataset.validation
    self._recall = Recall(dataset, devices, settings, store)
    self._index = evaluate.evenly(settings["feature_images"], len(dataset.test.label))
    self._compiled: dict[tuple[Callable, nn.Module], Callable] = {}
    self._frozen_answers: dict[tuple[str, nn.Module], Answers] = {}

  def of_frozen(self, key: str, network: nn.Module) -> tuple[Said, Answers]:
    """An evaluation of what lies under a key, beside nothing, and what is kept of it."""
    return self._judge(self._answer(key, network), {}), self._answers_of_frozen(key, network)

  def of_learner(self, plan: Plan, variables: Any) -> Said:
    """An evaluation of a stage's learner: beside its teachers, its reference, and what its earlier stages left.

    The first of these is 'earlier_1': 'earlier_1_lost' is the share of the images that it got right and the learner
    gets wrong, 'earlier_1_iou' the IoU of the sets of images that both get right.
    """
    said = self._judge(self._predict(plan.stage.learner, variables), self._others(plan))
    return said._replace(values=said.values | self._recall.of_learner(plan, variables))

  def at_end(
    self, plan: Plan, variables: Any, logits: BySplit | None = None
  ) -> tuple[Answers, dict[str, Any]]:
    """Final outputs of a stage's learner, and its metrics by class, its forgetting and the similarity of its features.

    The last by the role of the network compared with: 'teacher', 'teacher_2', ..., 'reference'. The logits of these
    variables need not be given.
    """
    kept = self._answers(plan.stage.learner, variables, logits)
    others, by_class = self._others(plan), {}
    for name, of_set in answers.logits(kept).items():
      compared = {role: answer[name] for role, answer in others.items()}
      by_class[name] = evaluate.by_class(of_set, self.splits[name].label, compared)
    roles = {
      f"teacher_{i}" if i > 1 else "teacher": self._answers_of_frozen(key, network)
      for i, (key, network) in enumerate(zip(plan.reads.teachers, plan.stage.teachers, strict=True), start=1)
    }
    if plan.reads.reference is not None:
      roles["reference"] = self._answers_of_frozen(plan.reads.reference, plan.stage.anchor)
    alike = {
      role: similarity.table(answers.features(kept), answers.features(other))._asdict()
      for role, other in roles.items()
      if len(self._index) > 1
    }
    return kept, {"by_class": by_class, "forgetting": self._forgetting(plan, kept), "similarity": alike}

  def on_extra_tests(
    self, plans: Sequence[Plan], sets: Mapping[str, Callable[[], Split]]
  ) -> list[dict[str, float]]:
    """The accuracy of each stage's network on each further test set, by its name."""
    values: list[dict[str, float]] = [{} for _ in plans]
    for name, make in sets.items():
      split = make()
      for plan, of_plan in zip(plans, values, strict=True):
        logits = self._say(evaluate.make_predict, plan.stage.learner, self._frozen(plan.key), split.image)
        of_plan[name] = metrics.top_k_accuracy(logits, split.label, 1)
    return values

  def _forgetting(self, plan: Plan, kept: Answers) -> dict[str, list[dict[str, Any]]]:
    """By set, what a stage's network has kept, forgotten and gained since each stage that it goes on from.

    Earlier stages are told by their keys: their names are not part of what a store's entry depends on.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, of_set in answers.logits(kept).items():
      found[name] = []
      for earlier in plan.earlier:
        before = self._answer(earlier.key, plan.stage.learner)[name]
        overlap = metrics.overlap(of_set, before, self.splits[name].label)
        found[name].append({"key": earlier.key, **overlap._asdict(), "iou": overlap.iou})
    return found

  def _judge(self, logits: BySplit, others: Mapping[str, BySplit]) -> Said:
    values: dict[str, float] = {}
    for name, of_set in logits.items():
      compared = {role: answer[name] for role, answer in others.items()}
      label, bins = self.splits[name].label, self._settings["calibration_bins"]
      found = evaluate.evaluate(of_set, label, compared, bins=bins)
      values |= {f"{name}/{metric}": value for metric, value in found.items()}
    return Said(values, logits)

  def _others(self, plan: Plan) -> dict[str, BySplit]:
    """The answers that a stage's learner is compared with, by their role; of several teachers those of all as one."""
    others = {}
    if plan.reads.teachers:
      each = [self._answer(k, n) for k, n in zip(plan.reads.teachers, plan.stage.teachers, strict=True)]
      others["teacher"] = {name: metrics.ensemble([answer[name] for answer in each]) for name in each[0]}
    if plan.reads.reference is not None:
      others["reference"] = self._answer(plan.reads.reference, plan.stage.anchor)
    for i, earlier in enumerate(plan.earlier, start=1):
      others[f"earlier_{i}"] = self._answer(earlier.key, plan.stage.learner)
    return others

  def _answer(self, key: str, network: nn.Module) -> BySplit:
    """The logits of a frozen network."""
    return answers.logits(self._answers_of_frozen(key, network))

  def _answers_of_frozen(self, key: str, network: nn.Module) -> Answers:
    """What is kept of a frozen network: read where its stage has left it, else computed, once for all that ask."""
    if (key, network) not in self._frozen_answers:
      entry = Entry(self._store, key)
      whole = entry.answers.is_file() and not entry.problems(entry.answers.name)
      found = answers.read(entry.answers) if whole else self._answers(network, self._frozen(key))
      self._frozen_answers[key, network] = found
    return self._frozen_answers[key, network]

  def _answers(self, network: nn.Module, variables: Any, logits: BySplit | None = None) -> Answers:
    """What is kept of a network; see runtime/answers.py."""
    kept = {f"{name}/logits": of for name, of in (logits or self._predict(network, variables)).items()}
    if not len(self._index):
      return kept
    image = self.splits["test"].image[self._index]
    features = self._say(evaluate.make_features, network, variables, image)
    return kept | {"index": self._index} | {f"test/{name}": of for name, of in features.items()}

  def _frozen(self, key: str) -> Any:
    entry = Entry(self._store, key)
    return parallel.replicate(checkpoint.load_variables(entry.checked(entry.final)), self._devices)

  def _predict(self, network: nn.Module, variables: Any) -> BySplit:
    """The logits of a network on each held-out set."""
    say = functools.partial(self._say, evaluate.make_predict, network, variables)
    return {name: say(split.image) for name, split in self.splits.items()}

  def _say(
    self, make: Callable[..., evaluate.Predict], network: nn.Module, variables: Any, image: Images
  ) -> Any:
    """What a network of replicated variables says of a set of images: a tree of [n, ...]."""
    if (make, network) not in self._compiled:
      self._compiled[make, network] = parallel.compile_predict(make(network, self._normalize), self._devices)
    compiled, count = self._compiled[make, network], len(self._devices)
    size = -(-min(self._settings["batch_size"], len(image)) // count) * count

    def predict(places: np.ndarray) -> Any:
      said = compiled(variables, image[parallel.split(places, self._devices)])  # read where they are needed
      return jax.tree.map(lambda x: parallel.joined(x, self._devices), said)

    return evaluate.in_batches(predict, len(image), size)
