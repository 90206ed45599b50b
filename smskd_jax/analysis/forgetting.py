"""Forgetting: counts of each stage against earlier ones, and events image by image from evaluation to evaluation."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import records
from smskd_jax.analysis.records import Stage
from smskd_jax.training.metrics import Overlap


class Events(NamedTuple):
  """How often each image's answer became the one in question, and ceased to be it."""

  gained: np.ndarray  # [n]
  lost: np.ndarray  # [n]


class Pair(NamedTuple):
  """A stage against an earlier stage of the same network."""

  stage: str
  earlier: str
  split: str  # 'test' or 'validation'
  counts: Overlap


def pairs(stages: Sequence[Stage], names: Collection[str] = ()) -> tuple[list[Pair], list[str]]:
  """Pairs of stages with those that they go on from, in order, and a line for each stage without usable counts.

  Args:
    stages: of a run, as result.json has them.
    names: of the stages that are wanted; (): all.
  """
  found, problems = [], []
  for stage in stages:
    earlier = [one["key"] for one in records.chain(stages, stage)[:-1]]
    if not earlier or (names and stage["name"] not in names):
      continue
    try:
      found += _pairs_of(stage, earlier)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      words = f"{type(error).__name__} {' '.join(str(error).split())}"
      problems.append(
        f"- no forgetting of stage `{stage['name']}`: `forgetting` is missing or damaged in result.json ({words})"
      )
  return found, problems


def _pairs_of(stage: Stage, earlier: Sequence[str]) -> list[Pair]:
  """The pairs of one stage; raises ValueError where its records are not of the earlier stages or are no counts."""
  of_splits: Mapping[str, Sequence[Mapping[str, Any]]] = stage["forgetting"]
  if "test" not in of_splits:
    raise ValueError("there are no records of the test set")
  found = []
  for split, of_split in of_splits.items():
    if [record["key"] for record in of_split] != list(earlier):
      raise ValueError(f"the records of the set {split} are not of the earlier stages {list(earlier)}")
    for record in of_split:
      counts = Overlap(*(record[name] for name in Overlap._fields))
      if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{counts} are not counts")
      found.append(Pair(stage["name"], record["stage"], split, counts))
  return found


def since_first(stages: Sequence[Stage], last: Stage) -> Overlap | None:
  """The counts on the test set of a stage against the first that it goes on from; None where there are none."""
  own = [pair for pair in pairs(stages, {last["name"]})[0] if pair.split == "test"]
  return own[0].counts if own else None


def events(answers: np.ndarray, target: np.ndarray) -> Events:
  """Counts per image how often an answer was gained and lost, from one evaluation to the next.

  With the labels as targets these are the learning and forgetting events of Toneva, Sordoni, Tachet des Combes,
  Trischler, Bengio, Gordon, "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019,
  https://arxiv.org/abs/1812.05159, of held-out images, and counted at evaluations where theirs are counted in batches.
  With the answers of an earlier network as targets they tell of what that network said, right or wrong.

  Args:
    answers: the classes chosen [e, n].
    target: the class in question [n].
  """
  hit = answers == target[None, :]
  gained, lost = hit[1:] & ~hit[:-1], hit[:-1] & ~hit[1:]
  return Events(np.sum(gained, axis=0), np.sum(lost, axis=0))


def changes(answers: np.ndarray) -> np.ndarray:
  """How often each image's answer changed from one evaluation to the next, [n]; answers are [e, n]."""
  return np.sum(answers[1:] != answers[:-1], axis=0)


def histogram(counts: np.ndarray, most: int) -> np.ndarray:
  """Of counts [n], how many are 0, 1, ..., and `most` or more: [most + 1]."""
  return np.bincount(np.minimum(counts, most), minlength=most + 1)


def confusion(answers: np.ndarray, label: np.ndarray, k: int) -> np.ndarray:
  """Percent of the images of each class [k] that are taken for each class: [k, k]; zeros of a class without images.

  Args:
    answers: the classes chosen [n].
    label: the right ones [n].
    k: how many classes there are.
  """
  counts = np.bincount(label.astype(np.int64) * k + answers, minlength=k * k).reshape(k, k)
  return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
