"""What a network learned and forgot, image by image, from its answers evaluation after evaluation."""

from typing import NamedTuple

import numpy as np


class Events(NamedTuple):
  """How often each image's answer became the one in question, and ceased to be it."""

  gained: np.ndarray  # [n]
  lost: np.ndarray  # [n]


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
