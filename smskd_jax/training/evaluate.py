"""Evaluation of networks: outputs on sets of images, and reported metrics."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.data.views import EnumerableView
from smskd_jax.training import cka, metrics
from smskd_jax.training.stage import frozen_outputs

PredictFn = Callable[[Any, jax.Array], Any]


def make_predict(network: nn.Module, normalize: Callable[[jax.Array], jax.Array]) -> PredictFn:
  """Makes the pure function (variables, stored images [b, h, w, c]) -> logits [b, k]."""

  def predict(variables: Any, image: jax.Array) -> jax.Array:
    return frozen_outputs(network, variables, normalize(image)).logits

  return predict


def make_feature_fn(network: nn.Module, normalize: Callable[[jax.Array], jax.Array]) -> PredictFn:
  """Makes the pure function (variables, stored images [b, h, w, c]) -> features by name.

  Features are 'feature_0', 'feature_1', ... [b, c], the feature maps averaged over positions, from the stem on, and
  'embedding' [b, d]; in float32 or wider.
  """

  def features(variables: Any, image: jax.Array) -> dict[str, jax.Array]:
    outputs = frozen_outputs(network, variables, normalize(image))
    maps = {f"feature_{i}": feature_map for i, feature_map in enumerate(outputs.features)}
    return {name: cka.mean_pool(array) for name, array in (maps | {"embedding": outputs.embedding}).items()}

  return features


def make_cached_forward(
  network: nn.Module, views: EnumerableView, normalize: Callable[[jax.Array], jax.Array], dtype: Any
) -> Callable[[Any, tuple[jax.Array, ...]], tuple[jax.Array, jax.Array]]:
  """Makes the pure function that computes entries of a teacher cache.

  A frozen network is a function of the view. Where each image has V views (162 for crops padded by 4 with flips), V
  forward passes over the images serve any number of epochs, stages, seeds and students.

  Returns:
    (variables, (stored images, index, view index)) -> (logits [b, k], embedding [b, d]), in `dtype`.
  """

  def forward(variables: Any, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    outputs = frozen_outputs(network, variables, normalize(views.render(*inputs)))
    return outputs.logits.astype(dtype), outputs.embedding.astype(dtype)

  return forward


def map_in_batches(predict: Callable[[np.ndarray], Any], count: int, batch_size: int) -> Any:
  """Applies a function to batches of image indices, all of one size.

  The last batch is padded with the first images.

  Args:
    predict: indices [batch_size] -> a tree of arrays [batch_size, ...].
    count: number of images, n, 1 or more.
    batch_size: of every call.

  Returns:
    The tree, of arrays [n, ...] on the host.
  """
  batches = []
  for start in range(0, count, batch_size):
    batches.append(jax.device_get(predict(np.arange(start, start + batch_size) % count)))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *batches)


def evenly_spaced(count: int, total: int) -> np.ndarray:
  """Indices of `count` evenly spaced examples, or of all if there are fewer: [m], int32."""
  return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int32))


def classification_metrics(
  logits: np.ndarray, label: np.ndarray, others: Mapping[str, np.ndarray] | None = None, *, bins: int = 15
) -> dict[str, float]:
  """Metrics of a network on a set of images.

  Args:
    logits: [n, k].
    label: [n].
    others: logits [n, k] of networks to compare with, by role ('teacher', 'reference').
    bins: of the calibration errors.

  Returns:
    'accuracy', 'top5' ('topK' for K < 5 classes), 'nll', 'ece', 'ace', 'brier'. For each other network: the fraction
    of equal predictions, '<role>_agreement'; the divergence KL(other || network), '<role>_kl'; the fraction of images
    that only the other network classifies correctly, '<role>_regressions', and that only this network does,
    '<role>_improvements'; and the IoU of both networks' sets of correctly classified images, '<role>_iou'.
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
    values[f"{role}_regressions"] = overlap.forgotten / len(label)
    values[f"{role}_improvements"] = overlap.gained / len(label)
    values[f"{role}_iou"] = overlap.iou
  return values


def per_class_metrics(
  logits: np.ndarray, label: np.ndarray, others: Mapping[str, np.ndarray] | None = None
) -> dict[str, list[float | None]]:
  """Metrics of a network for each class, for JSON files.

  Args:
    logits: [n, k].
    label: [n].
    others: logits [n, k] of networks to compare with, by role ('teacher', 'reference').

  Returns:
    'accuracy', and for each other network '<role>_accuracy_delta', this network's accuracy minus the other's; each of
    length k. None for a class without examples: JSON has no NaN, and `np.array(values, float)` restores it.
  """
  values = {"accuracy": metrics.class_accuracy(logits, label)}
  for role, other in (others or {}).items():
    values[f"{role}_accuracy_delta"] = metrics.class_accuracy_delta(logits, other, label)
  return {name: [None if np.isnan(x) else float(x) for x in by_class] for name, by_class in values.items()}
