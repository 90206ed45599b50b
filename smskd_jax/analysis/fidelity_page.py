"""The chapter of a run's page about how like their teachers its networks have become."""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

import numpy as np

from smskd_jax.analysis import fidelity, fidelity_figures, records, teaching
from smskd_jax.analysis.page import Figure, Part, Section, Table
from smskd_jax.analysis.records import Record, Stage
from smskd_jax.analysis.teaching import Teaching

MOST_PANELS = 8  # of a stage and a teacher
MOST_TEACHERS = 2  # whose embeddings are drawn
COLORED = 10  # classes whose embeddings are drawn
ALL_CLASSES = 20  # so many have a bar each; of more, the EACH that gained most and the EACH that lost most
EACH = 10
# Whom a class's accuracy is held against: its role in result.json, in a legend and in a sentence.
OTHERS = {
  "teacher": ("its teacher", "its teacher (of several, the mean of their probabilities)"),
  "reference": ("its reference", "the reference of this stage"),
  "earlier_1": ("its first stage", "the network itself at the end of its first stage"),
}

RELIABILITY = (
  "Reliability on the test set. Above, the accuracy of the images in each of {bins} equally wide bins of confidence, "
  "the largest probability at temperature 1, against their mean confidence; bins without images are left out. A "
  "network below the dashes is surer than it is right. ECE is the expected calibration error in these bins. Below, the "
  "share of all test images in each bin. Several teachers count as one, by the mean of their probabilities."
)
CORRELATIONS = (
  "How differently student and teacher relate the classes: the absolute difference of the correlations, over the test "
  "images, of the logits of every two classes, as in a figure of Tian, Krishnan, Isola, Contrastive Representation "
  "Distillation, ICLR 2020. Rows and columns are the classes in their order; all panels share one scale of colours; "
  "grey is a logit that never changes. In the titles, the mean over all pairs of different classes. Each stage is at "
  "its end, beside a teacher that it learned from."
)
CKA = (
  "Linear CKA between the student's features (rows) and its teacher's (columns) on {images}: 1 where they are the same "
  "but for rotation, scale and shift. `tap` i is the i-th feature map, the stem's first, averaged over its positions; "
  "`pooled` is the embedding that the classifier sees. It is biased upwards where images are few against channels. "
  "Each stage is at its end, beside a teacher that it learned from."
)
EMBEDDINGS = {
  "pca": (
    "Embeddings, what the classifier sees, of {images} test images of {classes}: the first two principal components, "
    "of each network by itself and of these images alone, with their shares of the variance. Axes of different panels "
    "are different directions; their signs are chosen so that images lie as in the first panel as far as that goes."
  ),
  "tsne": (
    "Embeddings, what the classifier sees, of {images} test images of {classes}: t-SNE, of each network by itself and "
    "of these images alone, begun at the principal components, with a fixed seed. Which images are neighbours says "
    "something; sizes of groups, distances between them and directions do not."
  ),
}
CLASSES = (
  "Left, the accuracy at the end of {stage} on the test images of {classes}; right, by how many percentage points it "
  "is above that of {others}."
)
NUMBERS = (
  "Student and teacher at the end of each stage that has one: the mean absolute difference of the correlations of two "
  "classes' logits over the test images, 0 where they are the same, and linear CKA of the two embeddings, 1 where they "
  "are the same but for rotation, scale and shift."
)


def sections(record: Record, embedding: str = "pca") -> list[Section]:
  """The chapter; none where no network has a teacher, or nothing of it was kept.

  Args:
    record: a run.
    embedding: a name of `fidelity.EMBEDDINGS`.

  Raises:
    UserError: a file of answers is damaged.
  """
  networks = records.by_network(record.stages)
  made = {network: list(_parts(record, own, embedding)) for network, own in networks.items()}
  found = {network: parts for network, parts in made.items() if parts}
  if not found:
    return []
  if len(networks) == 1:
    return [Section("Fidelity", next(iter(found.values())))]
  return [Section("Fidelity", [Section(network, parts) for network, parts in found.items()])]


def _parts(record: Record, own: Sequence[Stage], embedding: str) -> Iterator[Part]:
  of = teaching.read(record, own)
  if of is None:
    return
  yield from _numbers(of)
  yield from _reliability(of)
  yield from _correlations(of)
  yield from _similarity(of)
  yield from _embeddings(record, of, embedding)
  yield from _classes(record, of.last)


def _numbers(of: Teaching) -> Iterator[Part]:
  """What the maps of correlations and of CKA come down to."""
  gaps = {
    (pair.stage["key"], pair.place): fidelity.mean_gap(one.correlation, other.correlation)
    for pair, one, other in of.both()
  }
  rows = []
  for pair in of.pairs:
    values = gaps.get((pair.stage["key"], pair.place)), _of_pooled(teaching.cka(pair))
    if values != (None, None):
      cells = ("-" if value is None or math.isnan(value) else f"{value:.3f}" for value in values)
      rows.append([pair.stage["name"], pair.name, *cells])
  if rows:
    header = ["stage", "beside", "difference of the correlations", "CKA of the embeddings"]
    yield Table(header, rows, NUMBERS)


def _of_pooled(cka: Mapping[str, Any] | None) -> float | None:
  """The embeddings' value among those of all features, where both sides have one."""
  if not cka or not "pooled" == cka["student"][-1] == cka["other"][-1]:
    return None
  return cka["cka"][-1][-1]


def _reliability(of: Teaching) -> Iterator[Part]:
  reads = of.last["inputs"]
  calibrated = {key: portrait.calibration for key, portrait in of.portraits.items()}
  found = {
    f"after {of.last['name']}": calibrated.get(of.last["key"]),
    "its teachers together" if len(reads["teachers"]) > 1 else "its teacher": of.teachers,
    "its reference": calibrated.get(reads["reference"]),
  }
  drawn = {name: one for name, one in found.items() if one is not None}
  if drawn:
    yield Figure("reliability", fidelity_figures.reliability(drawn), RELIABILITY.format(bins=of.bins))


def _correlations(of: Teaching) -> Iterator[Part]:
  panels = []
  for pair, student, teacher in of.both():
    a, b = student.correlation, teacher.correlation
    panels.append((f"{pair.title}\nmean {fidelity.mean_gap(a, b):.3f}", np.abs(a - b)))
  if panels:
    png = fidelity_figures.correlations(panels[-MOST_PANELS:])
    yield Figure("correlations", png, CORRELATIONS + _cut(len(panels)))


def _similarity(of: Teaching) -> Iterator[Part]:
  known = [(pair, cka) for pair in of.pairs if (cka := teaching.cka(pair))]
  if not known:
    return
  portrait = of.portraits.get(known[-1][0].stage["key"])
  rows = None if portrait is None else portrait.rows
  images = "the test images whose features were kept" if rows is None else f"{len(rows):,} test images"
  png = fidelity_figures.similarity([(pair.title, cka) for pair, cka in known[-MOST_PANELS:]])
  yield Figure("similarity", png, CKA.format(images=images) + _cut(len(known)))


def _cut(count: int) -> str:
  if count <= MOST_PANELS:
    return ""
  return f" Of {count} pairs of a stage and a teacher the last {MOST_PANELS} are shown."


def _embeddings(record: Record, of: Teaching, kind: str) -> Iterator[Part]:
  teachers = {pair.teacher: pair.name for pair in of.pairs if pair.stage is of.last}
  stages = {pair.stage["key"]: f"after {pair.stage['name']}" for pair in of.pairs}
  own = {key: name for key, name in stages.items() if key not in teachers}
  names = dict([*teachers.items()][:MOST_TEACHERS] + [*own.items()][-2:])
  last = of.portraits.get(of.last["key"])
  if of.label is None or last is None or last.rows is None:
    return
  # Networks of a shared store may have been looked at on other images.
  there = {key: of.portraits[key] for key in names if key in of.portraits}
  found = {
    key: one.pooled
    for key, one in there.items()
    if one.rows is not None and one.pooled is not None and np.array_equal(one.rows, last.rows)
  }
  label, k = of.label[last.rows], len(last.correlation)
  shown = label < COLORED
  if not shown.any():
    return
  made = {key: fidelity.EMBEDDINGS[kind](pooled[shown]) for key, pooled in found.items()}
  first = next(iter(made.values()))
  panels = [(names[key], fidelity.mirrored(one, first)) for key, one in made.items()]
  class_names = dict(enumerate(teaching.class_names(record, k)[:COLORED]))
  png = fidelity_figures.embeddings(panels, label[shown], class_names)
  classes = "all classes" if k <= COLORED else f"the first {COLORED} of {k} classes"
  yield Figure("embeddings", png, EMBEDDINGS[kind].format(images=f"{shown.sum():,}", classes=classes))


def _classes(record: Record, last: Stage) -> Iterator[Part]:
  """Class by class: the numbers that the run itself reported of a network's last stage."""
  of = {role: np.array(values, float) for role, values in last.get("by_class", {}).get("test", {}).items()}
  changes = {role: of[f"{role}_change"] for role in OTHERS if f"{role}_change" in of}
  if last["inputs"]["reference"] == records.chain(record.stages, last)[0]["key"]:
    changes.pop("earlier_1", None)  # it is the reference, and told of already
  changes = {role: change for role, change in changes.items() if not np.isnan(change).all()}
  if "accuracy" not in of or not changes:
    return
  k, by = len(of["accuracy"]), next(role for role in reversed(OTHERS) if role in changes)
  shown = np.arange(k) if k <= ALL_CLASSES else fidelity.most_changed(changes[by], EACH)
  if not len(shown):
    return
  names = teaching.class_names(record, k)
  drawn = {OTHERS[role][0]: change[shown] for role, change in changes.items()}
  png = fidelity_figures.classes(of["accuracy"][shown], drawn, [names[i] for i in shown])
  which = "each class"
  if k > ALL_CLASSES:
    which = (
      f"those of {k} classes that gained and that lost most against {OTHERS[by][1]}, {EACH} each at most"
    )
  others = " and of ".join(OTHERS[role][1] for role in changes)
  yield Figure("classes", png, CLASSES.format(stage=last["name"], classes=which, others=others))
