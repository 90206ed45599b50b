"""Metrics of predictions from logits and labels, on the host, in float64.

n examples, k classes. Of equal logits, the first class is the predicted one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
  """Numbers of examples that this network or another (an earlier one) classifies correctly."""

  kept: int  # by both
  forgotten: int  # by the other alone
  gained: int  # by this one alone

  @property
  def iou(self) -> float:
    """Intersection over union of the sets of correct examples; 1 for two empty sets."""
    union = sum(self)
    return self.kept / union if union else 1.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Log-probabilities [n, k] in float64."""
  shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
  return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def top_k_accuracy(logits: np.ndarray, label: np.ndarray, k: int) -> float:
  """Fraction of examples whose label is among the k largest logits."""
  ranked = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
  return float(np.mean(np.any(ranked == label[:, None], axis=-1)))


def negative_log_likelihood(logits: np.ndarray, label: np.ndarray) -> float:
  """Mean of -log p(label), in nats."""
  return float(-np.mean(np.take_along_axis(log_softmax(logits), label[:, None], axis=-1)))


def expected_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
  """Mean gap between confidence and accuracy over equally wide bins, weighted by their sizes.

  Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
  https://arxiv.org/abs/1706.04599, equation 3.

  Args:
    logits: [n, k].
    label: [n].
    bins: M; bin m holds the confidences in ((m - 1) / M, m / M].
  """
  confidence, index = confidence_bins(logits, bins)
  correct = np.argmax(logits, axis=-1) == label
  gap = np.bincount(index, confidence - correct, minlength=bins)
  return float(np.sum(np.abs(gap)) / len(label))


def confidence_bins(logits: np.ndarray, bins: int = 15) -> tuple[np.ndarray, np.ndarray]:
  """Confidences (largest probabilities) of the examples [n], and indices of their bins [n].

  Bins are equally wide; bin i, from 0, holds the confidences in (i / bins, (i + 1) / bins].
  """
  confidence = np.exp(np.max(log_softmax(logits), axis=-1))
  return confidence, np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def adaptive_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
  """Mean gap between probability and frequency over equally large ranges, class by class.

  Nixon, Dusenberry, Zhang, Jerfel, Tran, "Measuring Calibration in Deep Learning", CVPR Workshops 2019,
  https://arxiv.org/abs/1904.01685, their ACE:

    1 / (K R) sum_k sum_r |acc(r, k) - conf(r, k)|

  For class k the examples are ranked by p(k) and cut into R ranges; conf is the mean of p(k) in a range, acc the
  fraction of label k. Unlike `expected_calibration_error`, ACE measures all probabilities, not the largest alone. With
  many classes most probabilities are near zero, and ACE is much smaller than ECE.

  Differences: where R does not divide n, sizes differ by one and ranges count by their sizes, as in the authors' code;
  examples of equal p(k) on both sides of a cut share their labels evenly, so that the order of examples has no effect.

  Args:
    logits: [n, k].
    label: [n].
    bins: R; with fewer examples than R, each is a range.
  """
  if bins < 1:
    raise ValueError(f"bins is {bins}; it must be at least 1")
  probability = np.exp(log_softmax(logits))
  n, k = probability.shape
  starts = np.unique(np.arange(bins) * n // bins)
  gaps = (_ranked_gaps(probability[:, c], label == c) for c in range(k))
  return float(sum(np.sum(np.abs(np.add.reduceat(gap, starts))) for gap in gaps) / (n * k))


def _ranked_gaps(probability: np.ndarray, hit: np.ndarray) -> np.ndarray:
  """Probability minus hit, in ascending order of probability, [n].

  Equal probabilities get the mean of their hits.
  """
  value, group, size = np.unique(probability, return_inverse=True, return_counts=True)
  return np.repeat(value - np.bincount(group, hit) / size, size)


def brier_score(logits: np.ndarray, label: np.ndarray) -> float:
  """Mean squared distance of the probabilities from the one-hot label, from 0 to 2.

  Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78(1), 1950,
  https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2. For two classes the sum is twice the one-class score
  that is often called by his name.

  Args:
    logits: [n, k].
    label: [n].
  """
  distance = np.exp(log_softmax(logits))
  distance[np.arange(len(label)), label] -= 1
  return float(np.mean(np.sum(np.square(distance), axis=-1)))


def class_accuracy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Accuracy on the examples of each class, [k], in [0, 1]; NaN for a class without examples."""
  k, correct = logits.shape[-1], _is_correct(logits, label)
  count = np.bincount(label, minlength=k)
  return np.divide(np.bincount(label, correct, minlength=k), count, out=np.full(k, np.nan), where=count > 0)


def class_accuracy_delta(logits: np.ndarray, other_logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Difference of each class's accuracy from another network's, [k]; NaN without examples."""
  return class_accuracy(logits, label) - class_accuracy(other_logits, label)


def overlap(logits: np.ndarray, other_logits: np.ndarray, label: np.ndarray) -> Overlap:
  """Compares the sets of examples that a network and another one classify correctly.

  The counts and the IoU are the measure of forgetting of SMSKD (arXiv 2601.15657, Figure 3), where the other network
  is the student at the end of an earlier stage. Forgotten examples are the negative flips of Yan, Xiong, Kundu, Yang,
  Deng, Wang, Xia, Soatto, "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021,
  https://arxiv.org/abs/2011.09161. `kept + gained` is the number of examples that the network classifies correctly,
  `kept + forgotten` that of the other network.

  Args:
    logits: [n, k].
    other_logits: [n, k].
    label: [n].
  """
  correct, other_correct = _is_correct(logits, label), _is_correct(other_logits, label)
  return Overlap(
    kept=int(np.sum(correct & other_correct)),
    forgotten=int(np.sum(other_correct & ~correct)),
    gained=int(np.sum(correct & ~other_correct)),
  )


def _is_correct(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """True for examples whose predicted class is the label, [n]."""
  if logits.shape[:-1] != label.shape:
    raise ValueError(
      f"logits of shape {logits.shape} need labels of shape {logits.shape[:-1]}, not {label.shape}"
    )
  return np.argmax(logits, axis=-1) == label


def agreement(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Fraction of examples for which two networks predict the same class."""
  return float(np.mean(np.argmax(logits, -1) == np.argmax(other_logits, -1)))


def kl_divergence(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Mean of KL(other || this network), in nats, at temperature 1."""
  log_p, log_q = log_softmax(other_logits), log_softmax(logits)
  return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def ensemble_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
  """Logits of the mean of several networks' probabilities, [n, k].

  A single network's logits are returned unchanged.
  """
  if len(logits) == 1:
    return logits[0]
  return np.log(np.mean([np.exp(log_softmax(one)) for one in logits], axis=0))
