"""How like its teacher a network has become, as numbers: what the pictures of `fidelity_figures` show.

A student can be as accurate as its teacher and still be another function: Stanton, Izmailov, Kirichenko, Alemi, Wilson,
"Does Knowledge Distillation Really Work?", NeurIPS 2021, https://arxiv.org/abs/2106.05945. Accuracy tells of the one,
these tell of the other.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from smskd_jax.runtime.eval_outputs import EvalOutputs
from smskd_jax.training import metrics

COMPONENTS = 2
SEED = 0  # of t-SNE
PERPLEXITY = 30.0  # of t-SNE, where there are images enough


class Calibration(NamedTuple):
  """Images by the confidence of the answer, in equally wide bins; NaN where a bin has none."""

  images: np.ndarray  # [bins], how many
  confidence: np.ndarray  # [bins], mean
  accuracy: np.ndarray  # [bins]
  ece: float


class Embedded(NamedTuple):
  """Embeddings in the plane."""

  points: np.ndarray  # [n, 2]
  shares: np.ndarray | None = None  # [2], of the variance along each; None where the map is not linear


class Portrait(NamedTuple):
  """What the pictures need of one network's answers, which are too many to be kept of all networks."""

  correlation: np.ndarray  # [k, k], of the logits
  calibration: Calibration | None  # None: the labels are not known
  rows: np.ndarray | None  # [m], the test images of which there are embeddings; None: there are none
  pooled: np.ndarray | None  # [m, d], these


def portrait(answers: EvalOutputs, label: np.ndarray | None, bins: int) -> Portrait:
  """What the pictures need of a file of answers; `label` is the test set's [n], None where it is not known."""
  logits = answers["test/logits"]
  calibrated = None if label is None else calibration(logits, label, bins)
  return Portrait(correlation(logits), calibrated, answers.get("index"), answers.get("test/pooled"))


def calibration(logits: np.ndarray, label: np.ndarray, bins: int) -> Calibration:
  """A reliability diagram's numbers, with the bins and the error of `metrics.expected_calibration_error`.

  Args:
    logits: [n, k].
    label: [n].
    bins: how many; the i-th of M, from 0, holds the confidences in (i / M, (i + 1) / M].
  """
  confidence, index = metrics.confidence_bins(logits, bins)
  count = np.bincount(index, minlength=bins)
  mean = lambda values: np.divide(
    np.bincount(index, values, minlength=bins), count, out=np.full(bins, np.nan), where=count > 0
  )
  right = np.argmax(logits, axis=-1) == label
  ece = metrics.expected_calibration_error(logits, label, bins)
  return Calibration(count, mean(confidence), mean(right), ece)


def correlation(logits: np.ndarray) -> np.ndarray:
  """The correlations [k, k] of the logits [n, k] of every two classes over the images; NaN of a constant logit."""
  # The first image is an offset without rounding: what never changes has a deviation of exactly zero.
  deviation = logits.astype(np.float64) - logits[:1]
  deviation = deviation - deviation.mean(axis=0, keepdims=True)
  norm = np.linalg.norm(deviation, axis=0)
  unit = np.divide(deviation, norm[None], out=np.full(deviation.shape, np.nan), where=norm[None] > 0)
  return np.clip(unit.T @ unit, -1.0, 1.0)


def mean_gap(one: np.ndarray, other: np.ndarray) -> float:
  """The mean absolute difference of two correlation matrices [k, k] over the pairs of classes; NaN if none has one."""
  gap = np.abs(one - other)[np.triu_indices(len(one), 1)]
  gap = gap[~np.isnan(gap)]
  return float(gap.mean()) if gap.size else float("nan")


def pca(x: np.ndarray) -> Embedded:
  """The first two principal components of embeddings [n, d], and their shares of the variance.

  A component's sign is that with which its largest loading is positive.
  """
  x = x.astype(np.float64)
  left, values, right = np.linalg.svd(x - x.mean(axis=0, keepdims=True), full_matrices=False)
  size = min(COMPONENTS, len(values))
  largest = np.argmax(np.abs(right[:size]), axis=1)
  sign = np.sign(right[np.arange(size), largest])
  points, shares = np.zeros((len(x), COMPONENTS)), np.zeros(COMPONENTS)
  points[:, :size] = left[:, :size] * (sign * values[:size])[None]
  total = np.sum(np.square(values))
  shares[:size] = np.square(values[:size]) / total if total > 0 else 0.0
  return Embedded(points, shares)


def tsne(x: np.ndarray) -> Embedded:
  """t-SNE of embeddings [n, d], which begins at the principal components and is the same every time.

  van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008, https://jmlr.org/papers/v9/vandermaaten08a.html.
  """
  if len(x) <= COMPONENTS + 1 or np.all(x == x[:1]):
    return Embedded(pca(x).points)  # it has nothing to go by
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits  # comes with scikit-learn, which needs it too

  perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
  # One dimension alone would have no second component to begin at.
  x = np.pad(x.astype(np.float32), ((0, 0), (0, max(0, COMPONENTS - x.shape[1]))))
  # One thread: sums are then taken in the same order every time, and on a busy machine it is ten times as fast.
  with threadpool_limits(1):
    made = TSNE(COMPONENTS, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(x)
  return Embedded(np.asarray(made, np.float64))


EMBEDDINGS: Mapping[str, Callable[[np.ndarray], Embedded]] = {"pca": pca, "tsne": tsne}


def mirrored(embedded: Embedded, first: Embedded) -> Embedded:
  """With each axis turned so that it goes along with the first's, of the same images: its direction says nothing."""
  along = np.sum(embedded.points * first.points, axis=0)
  return embedded._replace(points=embedded.points * np.where(along < 0, -1.0, 1.0)[None])


def most_changed(change: np.ndarray, each: int) -> np.ndarray:
  """The classes of the `each` largest gains and the `each` largest losses, gains first; those without change never."""
  order = np.argsort(-change, kind="stable")  # NaN is last
  gained = [i for i in order if change[i] > 0][:each]
  lost = [i for i in order if change[i] < 0][-each:]
  return np.array([*gained, *lost], int)
