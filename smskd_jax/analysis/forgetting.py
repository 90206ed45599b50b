"""Forgetting: counts between a stage and its ancestors, and events per image."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis.stages import Stage, ancestors
from smskd_jax.training.metrics import Overlap


class Events(NamedTuple):
  """Number of times that each image's prediction became the target class, and left it."""

  gained: np.ndarray  # [n]
  lost: np.ndarray  # [n]


class StagePair(NamedTuple):
  """Counts of a stage against an earlier stage of the same network."""

  stage: str
  earlier: str
  split: str  # 'test' or 'validation'
  counts: Overlap


def stage_pairs(stages: Sequence[Stage], names: Collection[str] = ()) -> tuple[list[StagePair], list[str]]:
  """Returns the counts of each stage against its ancestors, and remarks.

  A remark is a line for each stage without usable counts.

  Args:
    stages: of a run, from result.json.
    names: of the wanted stages; (): all.
  """
  pairs, problems = [], []
  for stage in stages:
    earlier = [ancestor["key"] for ancestor in ancestors(stages, stage)[:-1]]
    if not earlier or (names and stage["name"] not in names):
      continue
    try:
      pairs += _parse_counts(stage, earlier)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      text = f"{type(error).__name__} {' '.join(str(error).split())}"
      problems.append(
        f"- no forgetting of stage `{stage['name']}`: `forgetting` is missing or damaged in result.json ({text})"
      )
  return pairs, problems


def _parse_counts(stage: Stage, earlier: Sequence[str]) -> list[StagePair]:
  """Returns the pairs of one stage with the keys `earlier`.

  Raises ValueError for invalid records.
  """
  by_split: Mapping[str, Sequence[Mapping[str, Any]]] = stage["forgetting"]
  if "test" not in by_split:
    raise ValueError("there are no records of the test set")
  pairs = []
  for split, split_records in by_split.items():
    if [record["key"] for record in split_records] != list(earlier):
      raise ValueError(f"the records of the set {split} are not of the earlier stages {list(earlier)}")
    for record in split_records:
      counts = Overlap(*(record[name] for name in Overlap._fields))
      if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"{counts} are not counts")
      pairs.append(StagePair(stage["name"], record["stage"], split, counts))
  return pairs


def since_first_stage(stages: Sequence[Stage], last: Stage) -> Overlap | None:
  """Counts on the test set of a stage against its first ancestor; None without counts."""
  pairs = [pair for pair in stage_pairs(stages, {last["name"]})[0] if pair.split == "test"]
  return pairs[0].counts if pairs else None


def events(predictions: np.ndarray, target: np.ndarray) -> Events:
  """Counts per image the evaluations at which the target class was gained and lost.

  With labels as targets these are the learning and forgetting events of Toneva, Sordoni, Tachet des Combes, Trischler,
  Bengio, Gordon, "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019,
  https://arxiv.org/abs/1812.05159, on held-out images and between evaluations, where the paper counts training images
  between batches. With predictions of an earlier network as targets the events compare with that network.

  Args:
    predictions: classes [evaluations, n].
    target: class [n].
  """
  hit = predictions == target[None, :]
  gained, lost = hit[1:] & ~hit[:-1], hit[:-1] & ~hit[1:]
  return Events(np.sum(gained, axis=0), np.sum(lost, axis=0))


def num_changes(predictions: np.ndarray) -> np.ndarray:
  """Number of changes [n] of each image's prediction between evaluations.

  Predictions are [evaluations, n].
  """
  return np.sum(predictions[1:] != predictions[:-1], axis=0)


def histogram(counts: np.ndarray, max_count: int) -> np.ndarray:
  """Numbers [max_count + 1] of images with 0, 1, ... events.

  The last counts `max_count` or more.
  """
  return np.bincount(np.minimum(counts, max_count), minlength=max_count + 1)


def confusion(predictions: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
  """Percent [k, k] of the images of each class (rows) by predicted class (columns).

  0 for classes without images.

  Args:
    predictions: classes [n].
    label: [n].
    num_classes: k.
  """
  index = label.astype(np.int64) * num_classes + predictions
  counts = np.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)
  return 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
