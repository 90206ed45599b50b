"""Evaluation of a network: its logits on a set of images, and what they say."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.training import metrics
from smskd_jax.training.stage import outputs

Predict = Callable[[Any, jax.Array], jax.Array]


def make_predict(network: nn.Module, normalize: Callable[[jax.Array], jax.Array]) -> Predict:
  """The pure function (variables, images as stored [b, h, w, c]) -> logits [b, k], to be compiled by the caller."""

  def predict(variables, image):
    return outputs(network, variables, normalize(image)).logits

  return predict


def logits_of(predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray, batch_size: int) -> np.ndarray:
  """The logits of all images, [n, k], in batches of one size: the last is filled up with zeros, and cut.

  Args:
    predict: images [batch_size, h, w, c] -> logits [batch_size, k].
    image: [n, h, w, c], of any n.
    batch_size: of every call.
  """
  pieces = []
  for start in range(0, len(image), batch_size):
    piece = image[start : start + batch_size]
    missing = batch_size - len(piece)
    padded = np.pad(piece, ((0, missing), *((0, 0),) * (image.ndim - 1)))
    pieces.append(np.asarray(predict(padded))[: len(piece)])
  return np.concatenate(pieces)


def evaluate(
  logits: np.ndarray, label: np.ndarray, others: Mapping[str, np.ndarray] | None = None, *, bins: int = 15
) -> dict[str, float]:
  """All that is reported of a network on a set.

  Args:
    logits: [n, k].
    label: [n].
    others: logits [n, k] of networks to compare with, by role ('teacher', 'reference').
    bins: of the calibration error.

  Returns:
    'accuracy', 'top5' (top2 of two classes: as many as there are), 'nll', 'ece', and for each other network
    '<role>_agreement' and '<role>_kl', the divergence of the network from it.
  """
  k = min(5, logits.shape[-1])
  values = {
    "accuracy": metrics.top_k_accuracy(logits, label, 1),
    f"top{k}": metrics.top_k_accuracy(logits, label, k),
    "nll": metrics.negative_log_likelihood(logits, label),
    "ece": metrics.expected_calibration_error(logits, label, bins),
  }
  for role, other in (others or {}).items():
    values[f"{role}_agreement"] = metrics.agreement(logits, other)
    values[f"{role}_kl"] = metrics.kl_divergence(logits, other)
  return values
