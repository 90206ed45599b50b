"""What is said of predictions: numbers from logits and labels, on the host, in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
  """Counts of examples by which of two networks classifies them correctly, this one or another (an earlier one)."""

  kept: int  # both
  forgotten: int  # the other alone
  gained: int  # this one alone

  @property
  def iou(self) -> float:
    """|A and B| / |A or B| of the two sets of correctly classified examples; 1 exactly where the sets are equal.

    Two empty sets are equal, and nothing is forgotten: 1 too.
    """
    union = sum(self)
    return self.kept / union if union else 1.0


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Log-probabilities [n, k] in float64."""
  shifted = logits.astype(np.float64) - np.max(logits, axis=-1, keepdims=True)
  return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def top_k_accuracy(logits: np.ndarray, label: np.ndarray, k: int) -> float:
  """Share of examples whose label is among the k largest logits; of equal logits the first classes count."""
  ranked = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
  return float(np.mean(np.any(ranked == label[:, None], axis=-1)))


def negative_log_likelihood(logits: np.ndarray, label: np.ndarray) -> float:
  """Mean of -log p(label), in nats."""
  return float(-np.mean(np.take_along_axis(log_softmax(logits), label[:, None], axis=-1)))


def expected_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
  """Mean gap between confidence and accuracy over equally wide bins of confidence, weighted by their sizes.

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
  """The largest probability of each example [n], and which of equally wide bins it lies in [n].

  Bin i, from 0, holds the confidences in (i / bins, (i + 1) / bins].
  """
  confidence = np.exp(np.max(log_softmax(logits), axis=-1))
  return confidence, np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def adaptive_calibration_error(logits: np.ndarray, label: np.ndarray, bins: int = 15) -> float:
  """Mean gap between probability and frequency, of every class by itself, over ranges of equally many examples.

  Nixon, Dusenberry, Zhang, Jerfel, Tran, "Measuring Calibration in Deep Learning", CVPR Workshops 2019,
  https://arxiv.org/abs/1904.01685, their ACE:

    1 / (K R) sum_k sum_r |acc(r, k) - conf(r, k)|

  For class k the examples are ranked by p(k) and cut into R ranges; conf is the mean of p(k) in a range, acc the share
  of label k there. Unlike `expected_calibration_error` it holds all probabilities to account, not the largest alone.
  Of many classes most probabilities are near zero, rightly so, and then it is much the smaller of the two.

  Differences: where R does not divide n, sizes differ by one and ranges count by their sizes, as in the authors' code;
  examples of equal p(k) that a cut falls between share their labels evenly, so that the order of examples says nothing.

  Args:
    logits: [n, k].
    label: [n].
    bins: R; with fewer examples than that, each is a range.
  """
  if bins < 1:
    raise ValueError(f"bins is {bins}; it must be at least 1")
  probability = np.exp(log_softmax(logits))
  n, k = probability.shape
  starts = np.unique(np.arange(bins) * n // bins)
  gaps = (_ranked_gaps(probability[:, c], label == c) for c in range(k))
  return float(sum(np.sum(np.abs(np.add.reduceat(gap, starts))) for gap in gaps) / (n * k))


def _ranked_gaps(probability: np.ndarray, hit: np.ndarray) -> np.ndarray:
  """Probability minus hit [n], from the least probability [n] to the largest; equal ones have their mean hit [n]."""
  value, group, size = np.unique(probability, return_inverse=True, return_counts=True)
  return np.repeat(value - np.bincount(group, hit) / size, size)


def brier_score(logits: np.ndarray, label: np.ndarray) -> float:
  """Mean squared distance of the probabilities from the label's one-hot vector, summed over classes: from 0 to 2.

  Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78(1), 1950,
  https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2. His is this sum; of two classes it is twice the
  one-class score that often bears his name.

  Args:
    logits: [n, k].
    label: [n].
  """
  distance = np.exp(log_softmax(logits))
  distance[np.arange(len(label)), label] -= 1
  return float(np.mean(np.sum(np.square(distance), axis=-1)))


def class_accuracy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """The accuracy on each class's examples [k], in [0, 1]; NaN where a class has no example."""
  k, right = logits.shape[-1], _is_correct(logits, label)
  count = np.bincount(label, minlength=k)
  return np.divide(np.bincount(label, right, minlength=k), count, out=np.full(k, np.nan), where=count > 0)


def class_accuracy_delta(logits: np.ndarray, other_logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """By how much each class's accuracy is above another network's [k], in [-1, 1]; NaN where it has no example."""
  return class_accuracy(logits, label) - class_accuracy(other_logits, label)


def overlap(logits: np.ndarray, other_logits: np.ndarray, label: np.ndarray) -> Overlap:
  """Compare the sets of examples that a network and another one classify correctly.

  The counts and the IoU are the measure of forgetting of SMSKD (arXiv 2601.15657, Figure 3), where the other network
  is the student at the end of an earlier stage. Forgotten examples are the negative flips of Yan, Xiong, Kundu, Yang,
  Deng, Wang, Xia, Soatto, "Positive-Congruent Training: Towards Regression-Free Model Updates", CVPR 2021,
  https://arxiv.org/abs/2011.09161. `kept + gained` are all that the network has right, `kept + forgotten` all that the
  other has right; of equal logits the first class is the predicted one, as in `top_k_accuracy`.

  Args:
    logits: [n, k].
    other_logits: [n, k].
    label: [n].
  """
  right, other_right = _is_correct(logits, label), _is_correct(other_logits, label)
  count = lambda examples: int(np.sum(examples))
  return Overlap(count(right & other_right), count(other_right & ~right), count(right & ~other_right))


def _is_correct(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Whether the first choice is the label [n]; of equal logits the first class is chosen."""
  if logits.shape[:-1] != label.shape:
    raise ValueError(
      f"logits of shape {logits.shape} need labels of shape {logits.shape[:-1]}, not {label.shape}"
    )
  return np.argmax(logits, axis=-1) == label


def agreement(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Share of examples on which two networks' first choices are the same."""
  return float(np.mean(np.argmax(logits, -1) == np.argmax(other_logits, -1)))


def kl_divergence(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Mean of KL(other || this) in nats, both at temperature 1."""
  log_p, log_q = log_softmax(other_logits), log_softmax(logits)
  return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def ensemble_logits(logits: Sequence[np.ndarray]) -> np.ndarray:
  """The logits of several networks' mean probabilities, [n, k]; those of a single network as they are."""
  if len(logits) == 1:
    return logits[0]
  return np.log(np.mean([np.exp(log_softmax(each)) for each in logits], axis=0))
