"""The chapters of a page about a study."""

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import shlex
from typing import Any

import numpy as np

from smskd_jax.analysis import (
  forgetting,
  forgetting_figures,
  records,
  reference_weights,
  run_page,
  statistics,
  tables,
  variants,
)
from smskd_jax.analysis.forgetting_figures import Bar, Point
from smskd_jax.analysis.page import Code, Figure, Part, Section, Table
from smskd_jax.analysis.records import Record
from smskd_jax.analysis.study_records import StudyRecord, compared
from smskd_jax.analysis.variants import Cost, Records
from smskd_jax.training.metrics import Overlap

BY_STAGES = (
  "Test accuracy in percent at the end of each stage that the result of a variant goes on from: mean and standard "
  "deviation over the seeds. Variants with the same first stages share their first points."
)
BY_COST = (
  "Test accuracy in percent at the end, mean and standard deviation over the seeds, against the cost: above, the "
  "images that the student was trained on, forward and backward; below, those that frozen networks, teachers and "
  "references, looked at. Points of the same cost are moved apart a little."
)
ALONG = (
  "Along the epochs of the student's training, mean and standard deviation over the seeds: test accuracy; how many of "
  "all test images the first stage got right and the student now gets wrong; how many get the same answer from the "
  "student and from the reference of its stage."
)

COUNTS = (
  "Test images that the student classifies correctly at the end of its first and of its last stage (kept), of the "
  "first alone (forgotten), and of the last alone (gained): means over the seeds."
)
WEIGHTS = (
  "Variants that differ in the weight of the last stage's reference term alone, 0 where it has no reference: IoU of "
  "the sets of test images that the first and the last stage classify correctly, images forgotten and gained between "
  "them, and test accuracy; mean and standard deviation over the seeds."
)


def sections(
  record: StudyRecord, costs: Mapping[str, Mapping[int, Cost]], told: Sequence[Part]
) -> list[Section]:
  """All that a study's folder and store tell.

  Args:
    record: the study.
    costs: accuracies and costs of its finished runs, by variant and seed.
    told: the study's own report: variants, and claims against the control.
  """
  costs = {name: seeds for name, seeds in costs.items() if seeds}
  results = [*told, *_published(record.study, costs)]
  if record.missing:
    results.insert(0, f"**Not finished yet: {', '.join(record.missing)}.**")
  chapters = [Section("Results", results), _curves(record, costs)]
  forgotten = _forgetting(record)
  if forgotten:
    chapters.append(Section("Forgetting of the first stage", forgotten))
  if record.teachers is not None:
    of = record.teachers.stages
    parts: list[Part] = [tables.accuracy(of), tables.calibration(of), tables.budget(of)]
    chapters.append(Section("The teachers that the variants share", parts, folded=True))
  for name, seeds in record.found.items():
    for seed, run in list(seeds.items())[:1]:
      words = (
        f"The first finished seed of the variant, as an example. `{run.run.folder}` has a report of its own."
      )
      parts = [words, *run_page.results(run), tables.budget(run.stages), *run_page.training(run)]
      chapters.append(Section(f"{name}, seed {seed}", parts, folded=True))
  return [*chapters, _provenance(record)]


def _published(study: Mapping[str, Any], costs: Mapping[str, Mapping[int, Cost]]) -> list[Part]:
  """Our numbers beside those of a paper."""
  rows = []
  for name, theirs in study.get("published", {}).items():
    of = statistics.summary([cost.accuracy for cost in costs.get(name, {}).values()])
    row = [name, str(of.n), of.text(), f"{theirs:.2f}", "-", "-"]
    if of.mean is not None:
      row[4] = f"{of.mean - theirs:+.2f}"
      if of.std:
        row[5] = f"{(of.mean - theirs) / (of.std / math.sqrt(of.n)):+.1f}"
    rows.append(row)
  if not rows:
    return []
  caption = (
    "The paper's number is quoted from it and was not measured here. The difference is ours less the paper's, in "
    "points and in standard errors of our mean; what the paper's own number varies by is not counted."
  )
  header = ["variant", "n", "ours", "a paper's", "difference", "in standard errors"]
  return [Table(header, rows, caption)]


def _curves(record: StudyRecord, costs: Mapping[str, Mapping[int, Cost]]) -> Section:
  found, network = record.found, record.study["network"]
  parts: list[Part] = [
    Figure("stages", variants.by_stages(variants.chains(found, network)), BY_STAGES),
    Figure("cost", variants.by_cost({name: list(seeds.values()) for name, seeds in costs.items()}), BY_COST),
  ]
  along = variants.along(found, network)
  if along is not None:
    parts.append(Figure("along", along, ALONG))
  return Section("Variants against each other", parts)


def _forgetting(record: StudyRecord) -> list[Part]:
  """Kept, forgotten and gained images of the variants that have several stages, and against the reference's weight."""
  network, found = record.study["network"], dict[str, list[Overlap]]()
  problems: list[str] = []
  accuracies: dict[str, list[float]] = {}
  for name, seeds in record.found.items():
    for seed, run in seeds.items():
      last = records.chosen(run.stages, network)
      problems += [f"- {name}:{seed}: {line[2:]}" for line in forgetting.pairs(run.stages, {last["name"]})[1]]
      counts = forgetting.since_first(run.stages, last)
      if counts is not None:
        found.setdefault(name, []).append(counts)
        accuracies.setdefault(name, []).append(100 * last["metrics"]["last"]["test/accuracy"])
  parts: list[Part] = ["\n".join(problems)] if problems else []
  if found:
    bars = [Bar(name, *np.mean(of, axis=0).tolist()) for name, of in found.items()]
    parts.append(Figure("kept and forgotten", forgetting_figures.counts(bars), COUNTS))
  lines = reference_weights.lines({name: record.study["variants"][name] for name in found}, network)
  if lines:
    drawn = {
      line: [_point(weight, found[name], accuracies[name]) for name, weight in weights.items()]
      for line, weights in lines.items()
    }
    parts.append(Figure("weight of the reference", forgetting_figures.against_weight(drawn), WEIGHTS))
  return parts


def _point(weight: float, of: Sequence[Overlap], accuracies: Sequence[float]) -> Point:
  forgotten, gained = [one.forgotten for one in of], [one.gained for one in of]
  return Point(weight, [one.iou for one in of], forgotten, gained, accuracies)


def _provenance(record: StudyRecord) -> Section:
  folder, study, found = record.folder, record.study, record.found
  rows = [_row(name, seed, record) for name, seeds in found.items() for seed, record in seeds.items()]
  header = ["variant", "seed", "keys of its stages", "devices", "jax", "revision"]
  controls = ", ".join(f"`{name}`" for name in dict.fromkeys(compared(study).values())) or "none"
  return Section(
    "Where this comes from",
    [
      f"Study `{folder.absolute()}`, seeds {', '.join(map(str, study['seeds']))}, control {controls}.",
      Table(header, rows, "The runs, and the keys under which their stages lie in the store, in order."),
      "This page again, and all of one run:",
      Code(
        "\n".join(f"python -m smskd_jax.report {shlex.quote(str(path))}" for path in (folder, *_first(found)))
      ),
      "The study, resolved:",
      Code(json.dumps(study, indent=2), folded=True),
    ],
  )


def _row(name: str, seed: int, record: Record) -> list[str]:
  result = record.run.result
  devices = result.get("devices", {})
  on = f"{devices.get('count', '?')} x {devices.get('kind', '?')}"
  keys = " ".join(stage["key"] for stage in record.stages)
  return [
    name,
    str(seed),
    keys,
    on,
    result.get("versions", {}).get("jax") or "-",
    result.get("git_revision") or "-",
  ]


def _first(found: Records) -> list[Path]:
  return [record.run.folder for seeds in found.values() for record in seeds.values()][:1]
