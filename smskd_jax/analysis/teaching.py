"""Who learned from whom in a run, and what both sides left: what the chapter on fidelity is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.analysis import fidelity, records
from smskd_jax.analysis.fidelity import Calibration, Portrait
from smskd_jax.analysis.records import Record, Stage
from smskd_jax.training import metrics

BINS = 15  # of confidence, where the config does not say


class Pair(NamedTuple):
  """A stage and one of its teachers."""

  stage: Stage
  place: int  # of the teacher among the stage's
  teacher: str  # its key
  name: str  # the teacher's
  title: str  # over a picture


class Teaching(NamedTuple):
  """What a network learned from its teachers."""

  pairs: Sequence[Pair]  # one at least, in the order of the stages
  portraits: Mapping[
    str, Portrait
  ]  # by key: stages, teachers, the last stage's reference; those that left answers
  teachers: Calibration | None  # of the last stage's, of several as one; None: not known
  label: np.ndarray | None  # [n], of the test images
  bins: int

  @property
  def last(self) -> Stage:
    """The last stage with a teacher."""
    return self.pairs[-1].stage

  def both(self) -> list[tuple[Pair, Portrait, Portrait]]:
    """The pairs of which both portraits are there: the stage's, the teacher's."""
    there = [pair for pair in self.pairs if {pair.stage["key"], pair.teacher} <= self.portraits.keys()]
    return [(pair, self.portraits[pair.stage["key"]], self.portraits[pair.teacher]) for pair in there]


def read(record: Record, own: Sequence[Stage]) -> Teaching | None:
  """What one network's stages in a run learned; None if none has a teacher.

  Raises:
    UserError: a file of answers is damaged.
  """
  taught = pairs(record, own)
  if not taught:
    return None
  last, label = taught[-1].stage, record.labels.get("test")
  bins = record.run.config.get("evaluate", {}).get("calibration_bins", BINS)
  keys = [key for pair in taught for key in (pair.stage["key"], pair.teacher)]
  # Every file is read once, and one at a time: answers can be large.
  portraits = {
    key: fidelity.portrait(records.read_answers(record, key), label, bins)
    for key in dict.fromkeys((*keys, last["inputs"]["reference"]))
    if key in record.answers
  }
  teachers = _teachers(record, last["inputs"]["teachers"], portraits, label, bins)
  return Teaching(taught, portraits, teachers, label, bins)


def pairs(record: Record, own: Sequence[Stage]) -> list[Pair]:
  """Every stage of a network with each of its teachers; titles name the teacher where there are several."""
  given = {one["key"]: one["network"] for one in record.run.result.get("given", ())}
  names = given | {stage["key"]: stage["name"] for stage in record.stages}
  found = [(stage, i, key) for stage in own for i, key in enumerate(stage["inputs"]["teachers"])]
  several = len({key for _, _, key in found}) > 1
  beside = lambda key: f"\nbeside {names.get(key, key)}" if several else ""
  return [Pair(stage, i, key, names.get(key, key), stage["name"] + beside(key)) for stage, i, key in found]


def _teachers(
  record: Record,
  keys: Sequence[str],
  portraits: Mapping[str, Portrait],
  label: np.ndarray | None,
  bins: int,
) -> Calibration | None:
  if label is None or not portraits.keys() >= set(keys):
    return None
  if len(keys) == 1:
    return portraits[keys[0]].calibration
  each = [records.read_answers(record, key)["test/logits"] for key in keys]
  return fidelity.calibration(metrics.ensemble_logits(each), label, bins)


def cka(pair: Pair) -> Mapping[str, Any] | None:
  """How alike the features of both are, as the run reported it: an item of a stage's 'similarity'."""
  role = "teacher" if pair.place == 0 else f"teacher_{pair.place + 1}"
  found = pair.stage.get("similarity", {}).get(role)
  return found if found and found["student"] and found["other"] else None


def class_names(record: Record, k: int) -> list[str]:
  """The names of the k classes; their numbers where they have none."""
  names = record.run.result.get("image_metadata", {}).get("class_names", ())
  return list(names) if len(names) == k else [str(i) for i in range(k)]
