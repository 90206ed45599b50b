"""What is said of predictions: numbers from logits and labels, on the host, in float64."""

from collections.abc import Sequence

import numpy as np


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
  confidence = np.exp(np.max(log_softmax(logits), axis=-1))
  correct = np.argmax(logits, axis=-1) == label
  index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gap = np.bincount(index, confidence - correct, minlength=bins)
  return float(np.sum(np.abs(gap)) / len(label))


def agreement(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Share of examples on which two networks' first choices are the same."""
  return float(np.mean(np.argmax(logits, -1) == np.argmax(other_logits, -1)))


def kl_divergence(logits: np.ndarray, other_logits: np.ndarray) -> float:
  """Mean of KL(other || this) in nats, both at temperature 1."""
  log_p, log_q = log_softmax(other_logits), log_softmax(logits)
  return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def ensemble(logits: Sequence[np.ndarray]) -> np.ndarray:
  """The logits of several networks' mean probabilities, [n, k]; those of a single network as they are."""
  if len(logits) == 1:
    return logits[0]
  return np.log(np.mean([np.exp(log_softmax(each)) for each in logits], axis=0))
