"""Similarity of students and teachers as functions: calibration, CKA and others.

A student can reach its teacher's accuracy and still be a different function: Stanton, Izmailov, Kirichenko, Alemi,
Wilson, "Does Knowledge Distillation Really Work?", NeurIPS 2021, https://arxiv.org/abs/2106.05945.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import records
from smskd_jax.analysis.records import RunRecord
from smskd_jax.analysis.stages import Stage
from smskd_jax.runtime.eval_outputs import EvalOutputs
from smskd_jax.training import metrics

NUM_COMPONENTS = 2
TSNE_SEED = 0
TSNE_PERPLEXITY = 30.0  # smaller for few images
DEFAULT_BINS = 15  # of confidence, where the config has no number


class Calibration(NamedTuple):
  """Reliability diagram: images by confidence in equally wide bins; NaN for empty bins."""

  images: np.ndarray  # [bins], number of images
  confidence: np.ndarray  # [bins], mean
  accuracy: np.ndarray  # [bins]
  ece: float


class Embedding2D(NamedTuple):
  """Embeddings projected to two dimensions."""

  points: np.ndarray  # [n, 2]
  explained_variance: np.ndarray | None = None  # [2], fractions; None for t-SNE


class OutputSummary(NamedTuple):
  """Statistics of the outputs of one network.

  The outputs of all networks may not fit into memory.
  """

  correlation: np.ndarray  # [k, k], of the logits
  calibration: Calibration | None  # None: the labels are unknown
  image_index: np.ndarray | None  # [m], indices of the test images that have embeddings; None: no embeddings
  embedding: np.ndarray | None  # [m, d]


class TeacherPair(NamedTuple):
  """A stage and one of its teachers."""

  stage: Stage
  teacher_index: int  # of the teacher among the teachers of the stage
  teacher_key: str
  teacher: str  # name of the teacher's stage or network
  title: str  # of a panel in a figure


class TeacherPairs(NamedTuple):
  """A network's stages with their teachers, and summaries of their outputs."""

  pairs: Sequence[TeacherPair]  # at least one, in the order of the stages
  # By key: stages, teachers and the reference of the last stage, where outputs were saved.
  summaries: Mapping[str, OutputSummary]
  teacher_calibration: (
    Calibration | None
  )  # of the mean probabilities of the last stage's teachers; None: unknown
  label: np.ndarray | None  # [n], of the test images
  bins: int

  @property
  def last_stage(self) -> Stage:
    """Last stage that has a teacher."""
    return self.pairs[-1].stage

  def complete_pairs(self) -> list[tuple[TeacherPair, OutputSummary, OutputSummary]]:
    """Pairs with the summaries of the stage and of the teacher, where both exist."""
    complete = [p for p in self.pairs if {p.stage["key"], p.teacher_key} <= self.summaries.keys()]
    return [(p, self.summaries[p.stage["key"]], self.summaries[p.teacher_key]) for p in complete]


def read_teacher_pairs(record: RunRecord, network_stages: Sequence[Stage]) -> TeacherPairs | None:
  """Reads the outputs of the stages of one network and of their teachers.

  None for a network without teachers.

  Raises:
    UserError: a file of outputs is damaged.
  """
  pairs = list_teacher_pairs(record, network_stages)
  if not pairs:
    return None
  inputs, label = pairs[-1].stage["inputs"], record.labels.get("test")
  bins = record.run.config.get("evaluate", {}).get("calibration_bins", DEFAULT_BINS)
  keys = [key for pair in pairs for key in (pair.stage["key"], pair.teacher_key)]
  # Outputs can be large: every file is read once, one at a time.
  summaries = {
    key: summarize_outputs(records.read_eval_outputs(record, key), label, bins)
    for key in dict.fromkeys((*keys, inputs["reference"]))
    if key in record.eval_outputs
  }
  calibrated = _calibrate_teachers(record, inputs["teachers"], summaries, label, bins)
  return TeacherPairs(pairs, summaries, calibrated, label, bins)


def list_teacher_pairs(record: RunRecord, network_stages: Sequence[Stage]) -> list[TeacherPair]:
  """Pairs every stage of a network with each of its teachers.

  Titles name the teacher if there are several.
  """
  names = {item["key"]: item["network"] for item in record.pretrained}
  names |= {stage["key"]: stage["name"] for stage in record.stages}
  inputs = [(stage, i, key) for stage in network_stages for i, key in enumerate(stage["inputs"]["teachers"])]
  several = len({key for _, _, key in inputs}) > 1
  pairs = []
  for stage, i, key in inputs:
    name = names.get(key, key)
    pairs.append(TeacherPair(stage, i, key, name, stage["name"] + (f"\nand {name}" if several else "")))
  return pairs


def _calibrate_teachers(
  record: RunRecord,
  keys: Sequence[str],
  summaries: Mapping[str, OutputSummary],
  label: np.ndarray | None,
  bins: int,
) -> Calibration | None:
  """Calibration of the mean probabilities of several teachers.

  None if outputs or labels are missing.
  """
  if label is None or not summaries.keys() >= set(keys):
    return None
  if len(keys) == 1:
    return summaries[keys[0]].calibration
  logits = [records.read_eval_outputs(record, key)["test/logits"] for key in keys]
  return calibration(metrics.ensemble_logits(logits), label, bins)


def cka_table(pair: TeacherPair) -> Mapping[str, Any] | None:
  """CKA of the features of a pair, from the 'similarity' of the stage in result.json.

  None without features.
  """
  role = "teacher" if pair.teacher_index == 0 else f"teacher_{pair.teacher_index + 1}"
  table = pair.stage.get("similarity", {}).get(role)
  return table if table and table["student"] and table["other"] else None


def class_names(record: RunRecord, num_classes: int) -> list[str]:
  """Names of the classes; '0', '1', ... for data without names."""
  names = record.run.result.get("image_metadata", {}).get("class_names", ())
  return list(names) if len(names) == num_classes else [str(i) for i in range(num_classes)]


def summarize_outputs(outputs: EvalOutputs, label: np.ndarray | None, bins: int) -> OutputSummary:
  """Summarizes the outputs of a network.

  Args:
    outputs: content of an eval_outputs.npz.
    label: of the test set [n]; None: unknown.
    bins: of confidence.
  """
  logits = outputs["test/logits"]
  calibrated = None if label is None else calibration(logits, label, bins)
  return OutputSummary(correlation(logits), calibrated, outputs.get("index"), outputs.get("test/embedding"))


def calibration(logits: np.ndarray, label: np.ndarray, bins: int) -> Calibration:
  """Computes a reliability diagram.

  Bins and error are those of `metrics.expected_calibration_error`.

  Args:
    logits: [n, k].
    label: [n].
    bins: number M of bins; the i-th, from 0, contains the confidences in (i / M, (i + 1) / M].
  """
  confidence, index = metrics.confidence_bins(logits, bins)
  count = np.bincount(index, minlength=bins)

  def bin_mean(values: np.ndarray) -> np.ndarray:
    total = np.bincount(index, values, minlength=bins)
    return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

  correct = np.argmax(logits, axis=-1) == label
  ece = metrics.expected_calibration_error(logits, label, bins)
  return Calibration(count, bin_mean(confidence), bin_mean(correct), ece)


def correlation(logits: np.ndarray) -> np.ndarray:
  """Correlations [k, k] between the logits [n, k] of each two classes over images.

  NaN for constant logits.
  """
  # Relative to the first image, so that a constant logit has a deviation of exactly zero.
  deviation = logits.astype(np.float64) - logits[:1]
  deviation = deviation - deviation.mean(axis=0, keepdims=True)
  norm = np.linalg.norm(deviation, axis=0)
  unit = np.divide(deviation, norm[None], out=np.full(deviation.shape, np.nan), where=norm[None] > 0)
  return np.clip(unit.T @ unit, -1.0, 1.0)


def mean_correlation_gap(one: np.ndarray, other: np.ndarray) -> float:
  """Mean absolute difference of two correlation matrices [k, k] over pairs of classes.

  NaN without defined pairs.
  """
  gap = np.abs(one - other)[np.triu_indices(len(one), 1)]
  gap = gap[~np.isnan(gap)]
  return float(gap.mean()) if gap.size else float("nan")


def pca(x: np.ndarray) -> Embedding2D:
  """Projects embeddings [n, d] to their first two principal components.

  The sign of a component makes its largest loading positive.
  """
  points, explained = np.zeros((len(x), NUM_COMPONENTS)), np.zeros(NUM_COMPONENTS)
  if not np.all(x == x[:1]):
    from sklearn.decomposition import PCA

    size = min(NUM_COMPONENTS, *x.shape)
    model = PCA(size, svd_solver="full")
    points[:, :size] = model.fit_transform(x.astype(np.float64))
    explained[:size] = model.explained_variance_ratio_
  return Embedding2D(points, explained)


def tsne(x: np.ndarray) -> Embedding2D:
  """Computes t-SNE of embeddings [n, d], initialized by principal components; deterministic.

  van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 9, 2008, https://jmlr.org/papers/v9/vandermaaten08a.html.
  """
  if len(x) <= NUM_COMPONENTS + 1 or np.all(x == x[:1]):
    return Embedding2D(pca(x).points)  # too few different images
  from sklearn.manifold import TSNE
  from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

  perplexity = min(TSNE_PERPLEXITY, (len(x) - 1) / 3)
  # The initialization needs two dimensions.
  x = np.pad(x.astype(np.float32), ((0, 0), (0, max(0, NUM_COMPONENTS - x.shape[1]))))
  # One thread: the order of summation is then fixed, and on a busy machine one thread is ten times as fast.
  with threadpool_limits(1):
    model = TSNE(NUM_COMPONENTS, perplexity=perplexity, init="pca", random_state=TSNE_SEED)
    points = model.fit_transform(x)
  return Embedding2D(np.asarray(points, np.float64))


EMBEDDINGS: Mapping[str, Callable[[np.ndarray], Embedding2D]] = {"pca": pca, "tsne": tsne}


def align_signs(embedding: Embedding2D, first: Embedding2D) -> Embedding2D:
  """Flips axes so that they correlate with those of the first, for the same images.

  The direction of an axis is arbitrary.
  """
  product = np.sum(embedding.points * first.points, axis=0)
  return embedding._replace(points=embedding.points * np.where(product < 0, -1.0, 1.0)[None])


def most_changed(change: np.ndarray, count: int) -> np.ndarray:
  """Classes of the `count` largest gains and the `count` largest losses, gains first.

  Never classes without change.
  """
  order = np.argsort(-change, kind="stable")  # NaN is last
  gained = [i for i in order if change[i] > 0][:count]
  lost = [i for i in order if change[i] < 0][-count:]
  return np.array([*gained, *lost], int)
