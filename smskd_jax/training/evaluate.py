"""Evaluation of a network: its logits on a set of images, and what they say."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.training import cka, metrics
from smskd_jax.training.stage import frozen_outputs

PredictFn = Callable[[Any, jax.Array], Any]


def make_predict(network: nn.Module, normalize: Callable[[jax.Array], jax.Array]) -> PredictFn:
  """The pure function (variables, images as stored [b, h, w, c]) -> logits [b, k], to be compiled by the caller."""

  def predict(variables, image):
    return frozen_outputs(network, variables, normalize(image)).logits

  return predict


def make_feature_fn(network: nn.Module, normalize: Callable[[jax.Array], jax.Array]) -> PredictFn:
  """The pure function (variables, images as stored [b, h, w, c]) -> features, to be compiled by the caller.

  They are 'tap_0', 'tap_1', ... [b, c], the feature maps averaged over their positions, the stem's first, and
  'embedding' [b, d], the embedding; in float32 at least.
  """

  def features(variables, image):
    said = frozen_outputs(network, variables, normalize(image))
    named = {f"tap_{i}": of_tap for i, of_tap in enumerate(said.features)} | {"embedding": said.embedding}
    return {name: cka.mean_pool(of) for name, of in named.items()}

  return features


def map_in_batches(predict: Callable[[np.ndarray], Any], count: int, batch_size: int) -> Any:
  """What is said of so many images, in batches of one size: the last is filled up with the first images, and cut.

  Args:
    predict: places of images, [batch_size] -> a tree of arrays [batch_size, ...].
    count: of all images, n, 1 or more.
    batch_size: of every call.

  Returns:
    The tree, of arrays [n, ...] on the host.
  """
  pieces = []
  for start in range(0, count, batch_size):
    pieces.append(jax.device_get(predict(np.arange(start, start + batch_size) % count)))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *pieces)


def evenly_spaced(count: int, total: int) -> np.ndarray:
  """The places of `count` examples spread evenly over so many, or of all if there are no more: [m], int32."""
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int32))


def classification_metrics(
  logits: np.ndarray, label: np.ndarray, others: Mapping[str, np.ndarray] | None = None, *, bins: int = 15
) -> dict[str, float]:
  """All that is reported of a network on a set.

  Args:
    logits: [n, k].
    label: [n].
    others: logits [n, k] of networks to compare with, by role ('teacher', 'reference').
    bins: of the calibration errors.

  Returns:
    'accuracy', 'top5' (top2 of two classes: as many as there are), 'nll', 'ece', 'ace', 'brier', and for each other
    network '<role>_agreement', '<role>_kl', the divergence of the network from it, the shares of examples on which
    it is right and the network wrong, '<role>_lost', and the other way round, '<role>_won', and the IoU of the sets of
    examples that the two have right, '<role>_iou'.
  """
  k = min(5, logits.shape[-1])
  values = {
    "accuracy": metrics.top_k_accuracy(logits, label, 1),
    f"top{k}": metrics.top_k_accuracy(logits, label, k),
    "nll": metrics.negative_log_likelihood(logits, label),
    "ece": metrics.expected_calibration_error(logits, label, bins),
    "ace": metrics.adaptive_calibration_error(logits, label, bins),
    "brier": metrics.brier_score(logits, label),
  }
  for role, other in (others or {}).items():
    values[f"{role}_agreement"] = metrics.agreement(logits, other)
    values[f"{role}_kl"] = metrics.kl_divergence(logits, other)
    overlap = metrics.overlap(logits, other, label)
    values[f"{role}_lost"] = overlap.forgotten / len(label)
    values[f"{role}_won"] = overlap.gained / len(label)
    values[f"{role}_iou"] = overlap.iou
  return values


def per_class_metrics(
  logits: np.ndarray, label: np.ndarray, others: Mapping[str, np.ndarray] | None = None
) -> dict[str, list[float | None]]:
  """What is reported of a network on each class, for files.

  Args:
    logits: [n, k].
    label: [n].
    others: logits [n, k] of networks to compare with, by role ('teacher', 'reference').

  Returns:
    'accuracy' and for each other network '<role>_change', by how much the accuracy is above that network's; each of
    length k. None where a class has no example: JSON has no NaN, and `np.array(values, float)` makes one of it.
  """
  values = {"accuracy": metrics.class_accuracy(logits, label)}
  for role, other in (others or {}).items():
    values[f"{role}_change"] = metrics.class_accuracy_delta(logits, other, label)
  return {name: [None if np.isnan(x) else float(x) for x in of] for name, of in values.items()}
