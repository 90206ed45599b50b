"""Reports of runs: the summary that a run writes at its end, and the full report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
import math
from pathlib import Path
import shlex
from typing import Any

import numpy as np

from smskd_jax.analysis import (
  document,
  fidelity,
  fidelity_figures,
  forgetting,
  records,
  stages,
  statistics,
  tables,
  training_figures,
)
from smskd_jax.analysis.document import Code, Figure, Part, Section, Table
from smskd_jax.analysis.fidelity import TeacherPairs
from smskd_jax.analysis.records import RunRecord
from smskd_jax.analysis.stages import Stage
from smskd_jax.analysis.training_figures import CountBar
from smskd_jax.runtime.integrity import read_json
from smskd_jax.runtime.store import StageEntry

ONE_SEED = "one seed only"  # in the title of a report with a single seed
MAX_PANELS = 8  # pairs of a stage and a teacher in one figure
MAX_TEACHER_EMBEDDINGS = 2
MAX_CLASSES_EMBEDDED = 10
MAX_CLASSES_LISTED = (
  20  # more classes: only the NUM_CLASSES_EACH with the largest gains and the largest losses
)
NUM_CLASSES_EACH = 10
# Networks that the accuracy of a class is compared with: role in result.json, name in a legend and in a sentence.
CLASS_ROLES = {
  "teacher": ("its teacher", "its teacher (for several, their mean probabilities)"),
  "reference": ("its reference", "the reference of this stage"),
  "earlier_1": ("its first stage", "the same network at the end of its first stage"),
}

SUMMARY = "Test accuracy, and agreement with and divergence from the reference, along the stages."
ACCURACY = (
  "Test accuracy in percent along the training of each student. Names of stages are above; dashed grey lines are "
  "teachers at the end of their training; dotted lines are the references, which are frozen at the end of the stage "
  "before. A stage that ends below its dotted line has lost accuracy."
)
COUNTS = (
  "Test images that are correct at the end of a stage and of an earlier stage (kept), of the earlier stage only "
  "(forgotten), and of the later stage only (gained)."
)
FORGETTING = (
  "Forgetting on the test set. From top to bottom, as far as recorded: test images that were correct at the end of an "
  "earlier stage and are wrong now, in percent of all; IoU of the sets of images that were correct then and are "
  "correct now; losses of earlier stages on `config.evaluate.num_forgetting_images` test images, relative to their "
  "value at the end of their stage (above 1: the objective of that stage is being forgotten); agreement of the "
  "predictions with the reference of the stage; mean KL divergence from the reference. Stages without a reference "
  "have a gap."
)
TERMS = (
  "Above: unweighted terms of the objective on training images and the loss, their weighted sum (dashed); means over "
  "steps. Below: accuracy on augmented training images in training mode, and on test images."
)
WEIGHTS = (
  "Weights of the reference term. Above: percent of the training images of an epoch by weight, in ten bins. Below: "
  "mean weight of all images, of the images that the student classifies correctly at that step, and of the other "
  "images, including those without a label."
)
GRADIENTS = (
  "Gradients with respect to the student's parameters at single steps. Above: norm of the gradient of each weighted "
  "part of the objective. Below: cosine between two of these gradients; 1 is the same direction, -1 the opposite."
)
EVENTS = (
  "Test images by the number of evaluations at which their prediction left, and returned to, the class predicted at "
  "the start of the stage; logarithmic above 1. Labels are unknown here: the first prediction may have been wrong."
)
LABELED_EVENTS = (
  "Test images by the number of evaluations of a stage at which they were forgotten (correct before, wrong now) and "
  "learned (the reverse); logarithmic above 1."
)
CONFUSION = (
  "Change of the confusion matrix on the test set from the end of the first stage to the end of the last stage, in "
  "percentage points of the images of a class. Rows: class; columns: predicted class."
)
RELIABILITY = (
  "Reliability on the test set. Above: accuracy against mean confidence (largest probability at temperature 1) in "
  "{bins} equally wide bins; empty bins are left out. Points below the dashed line are overconfident. ECE is the "
  "expected calibration error in these bins. Below: percent of the test images in each bin. Several teachers are "
  "combined by their mean probabilities."
)
CORRELATIONS = (
  "Absolute difference between student and teacher in the correlations, over the test images, of the logits of each "
  "two classes, as in Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020. Rows and columns are "
  "classes; all panels share one colour scale; grey: a constant logit. Titles give the mean over pairs of different "
  "classes. Each stage is at its end."
)
CKA = (
  "Linear CKA between features of the student (rows) and of the teacher (columns) on {images}; 1 for features that "
  "are equal up to rotation, scale and shift. Feature maps are in the order of the network, the stem first, averaged "
  "over positions; `embedding` is the input of the classifier. CKA is biased upwards for few images and many channels. "
  "Each stage is at its end."
)
EMBEDDINGS = {
  "pca": (
    "Embeddings (input of the classifier) of {images} test images of {classes}: first two principal components, "
    "computed for each network separately, with their fractions of the variance. Axes differ between panels; their "
    "signs are aligned with the first panel."
  ),
  "tsne": (
    "Embeddings (input of the classifier) of {images} test images of {classes}: t-SNE with a fixed seed, initialized "
    "by principal components, computed for each network separately. Only neighbourhoods are meaningful; sizes, "
    "distances and directions are not."
  ),
}
CLASSES = (
  "Left: accuracy at the end of {stage} on the test images of {classes}. Right: difference in percentage points from "
  "{others}."
)
FIDELITY = (
  "Students and teachers at the end of each stage: mean absolute difference of the correlations of the logits of two "
  "classes over the test images (0: equal), and linear CKA of the embeddings (1: equal up to rotation, scale and "
  "shift)."
)


def write_summary(workdir: Path, store: Path) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/figures for a finished run.

  Returns the path of the report.
  """
  result = read_json(workdir / "result.json")
  curves = {stage["name"]: records.read_curve(StageEntry(store, stage["key"])) for stage in result["stages"]}
  path = workdir / "report.md"
  lines = {name: lines for name, (lines, _) in curves.items()}
  document.write_markdown(summary(result, lines, [p for _, p in curves.values() if p]), path, "figures")
  return path


def summary(
  result: Mapping[str, Any], curves: Mapping[str, stages.Lines], warnings: Sequence[str] = ()
) -> Section:
  """Builds the summary of a run.

  Args:
    result: content of result.json.
    curves: lines of metrics.jsonl by stage.
    warnings: a line for each missing or damaged file.
  """
  run_stages, versions, devices = result["stages"], result["versions"], result["devices"]
  pairs, problems = forgetting.stage_pairs(run_stages)
  parts = [
    _bullet_list(warnings),
    tables.pretrained(result.get("pretrained", ())),
    tables.summary(run_stages),
    tables.extra_test_accuracy(run_stages),
    tables.forgotten(pairs),
    "\n".join(problems),
    tables.stage_settings(run_stages),
    Figure("stages", training_figures.summary(run_stages, curves), SUMMARY),
    f"{devices['count']} x {devices['kind']}, jax {versions['jax']}, flax {versions['flax']}, optax "
    f"{versions['optax']}, smskd_jax {versions['smskd_jax']} ({result['git_revision']}).",
  ]
  return Section(f"{result['data']}, seed {result['seed']}", [part for part in parts if part])


def full_report(record: RunRecord, runs: Sequence[RunRecord], embedding: str = "pca") -> Section:
  """Builds the full report of a run.

  Args:
    record: of the run.
    runs: all runs of the document, which may have the same config with other seeds.
    embedding: projection of embeddings, a name of `fidelity.EMBEDDINGS`.

  Raises:
    UserError: a file of outputs is damaged.
  """
  parts: list[Part] = [part for part in (_bullet_list(record.warnings),) if part]
  parts += [
    Section("Results", list(results(record))),
    Section("Compute", [tables.compute_by_stage(record.stages), tables.compute_by_network(record)]),
    *fidelity_sections(record, embedding),
    *training_sections(record),
    _provenance(record),
  ]
  if _has_other_seeds(record, runs):
    return Section(record.title, parts)
  return Section(f"{record.title} ({ONE_SEED})", [f"**{statistics.SINGLE_SEED}**", *parts])


def comparison_tables(runs: Sequence[RunRecord]) -> list[Part]:
  """Tables of several runs: accuracy of each network, and means over seeds."""
  rows = [
    [run.title, network, s[-1]["name"], tables.percent(s[-1]["metrics"]["last"]["test/accuracy"])]
    for run in runs
    for network, s in stages.by_network(run.stages).items()
  ]
  caption = "Test accuracy of every network at its last epoch."
  parts: list[Part] = [Table(["run", "network", "last stage", "test"], rows, caption)] if runs else []
  groups = [group for group in _group_by_config(runs) if len(group) > 1]
  rows = [_mean_row(group, network) for group in groups for network in stages.by_network(group[0].stages)]
  if rows:
    caption = "Runs of one config with several seeds: test accuracy in percent, mean ± standard deviation over n seeds."
    parts.append(Table(["runs", "network", "n", "test"], rows, caption))
  return parts


def _mean_row(group: Sequence[RunRecord], network: str) -> list[str]:
  last = [stages.by_network(run.stages)[network][-1]["metrics"]["last"] for run in group]
  mean = statistics.summary([100 * metrics["test/accuracy"] for metrics in last])
  names = ", ".join(run.run.folder.absolute().name for run in group)
  return [names, network, str(mean.n), mean.text()]


def _config_without_seed(record: RunRecord) -> str:
  return json.dumps(dict(record.run.config) | {"seed": 0}, sort_keys=True)


def _group_by_config(runs: Sequence[RunRecord]) -> list[list[RunRecord]]:
  """Groups runs that differ only in their seeds; the first run of each seed counts."""
  groups: dict[str, dict[int, RunRecord]] = {}
  for run in runs:
    groups.setdefault(_config_without_seed(run), {}).setdefault(run.seed, run)
  return [list(by_seed.values()) for by_seed in groups.values()]


def _has_other_seeds(record: RunRecord, runs: Sequence[RunRecord]) -> bool:
  config = _config_without_seed(record)
  return any(run.seed != record.seed and _config_without_seed(run) == config for run in runs)


def results(record: RunRecord) -> Iterator[Part]:
  """Yields tables and a figure of the results of a run."""
  yield tables.accuracy(record.stages)
  if (table := tables.pretrained(record.pretrained)) is not None:
    yield table
  png = training_figures.accuracy_curves(record.stages, record.curves, record.pretrained)
  yield Figure("accuracy", png, ACCURACY)
  yield tables.calibration(record.stages)
  optional = tables.agreement(record.stages), tables.extra_test_accuracy(record.stages)
  yield from (table for table in optional if table is not None)


def training_sections(record: RunRecord) -> list[Section]:
  """Builds the sections on training; sections without recorded data are left out."""
  curves = record.curves
  labeled = {entry["name"]: _labeled_fraction(entry) for entry in record.run.config.get("stages", ())}
  builders: dict[str, Callable[[Sequence[Stage]], list[Part]]] = {
    "Forgetting": lambda s: [
      *_forgotten_counts(s, record.stages),
      *_figure("forgetting", training_figures.forgetting_curves(s, record.stages, curves), FORGETTING),
    ],
    "Predictions of the test images": lambda s: list(_prediction_parts(record, s)),
    "Weights of the reference": lambda s: _figure(
      "weights", training_figures.reference_weights(s, curves, labeled), WEIGHTS
    ),
    "Gradients": lambda s: _figure("gradients", training_figures.gradient_curves(s, curves), GRADIENTS),
    "Terms of the objective": lambda s: _figure("terms", training_figures.objective_terms(s, curves), TERMS),
  }
  sections = [_section_by_network(title, record, build) for title, build in builders.items()]
  return [section for section in sections if section is not None]


def _section_by_network(
  title: str, record: RunRecord, build: Callable[[Sequence[Stage]], list[Part]]
) -> Section | None:
  """Builds a section with a subsection for each network that has parts; None without parts."""
  networks = stages.by_network(record.stages)
  built = {network: build(network_stages) for network, network_stages in networks.items()}
  parts = {network: network_parts for network, network_parts in built.items() if network_parts}
  if not parts:
    return None
  if len(networks) == 1:
    return Section(title, next(iter(parts.values())))
  return Section(title, [Section(network, network_parts) for network, network_parts in parts.items()])


def _bullet_list(lines: Sequence[str]) -> str:
  return "\n".join(f"- {line}" for line in lines)


def _figure(name: str, png: bytes | None, caption: str) -> list[Part]:
  return [] if png is None else [Figure(name, png, caption)]


def _forgotten_counts(network_stages: Sequence[Stage], all_stages: Sequence[Stage]) -> list[Part]:
  """Table and bars of kept, forgotten and gained images."""
  pairs, problems = forgetting.stage_pairs(all_stages, {stage["name"] for stage in network_stages})
  table = tables.forgotten(pairs)
  bars = [CountBar(f"{p.stage} after {p.earlier}", *p.counts) for p in pairs if p.split == "test"]
  parts: list[Part] = ["\n".join(problems)] if problems else []
  if table is not None:
    parts += [table, Figure("kept and forgotten", training_figures.count_bars(bars), COUNTS)]
  return parts


def _labeled_fraction(entry: Mapping[str, Any]) -> float:
  """Fraction of the images of a stage of a config that have a label."""
  if entry.get("images", "train") == "unlabeled":
    return 0.0
  unlabeled = entry.get("unlabeled_batch_size", 0)
  return entry["batch_size"] / (entry["batch_size"] + unlabeled) if unlabeled else 1.0


def _prediction_parts(record: RunRecord, network_stages: Sequence[Stage]) -> Iterator[Part]:
  """Yields figures of the changes of predictions."""
  names = [stage["name"] for stage in network_stages]
  predictions = {
    name: record.predictions[name] for name in names if "test" in record.predictions.get(name, {})
  }
  if not predictions:
    return
  # The first predictions of a stage from scratch are random.
  continued = {stage["name"] for stage in network_stages if stage["inputs"]["init"] is not None}
  yield tables.prediction_stability(predictions, continued)
  label = record.labels.get("test")
  if label is not None:
    events = {name: forgetting.events(by_set["test"], label) for name, by_set in predictions.items()}
    labels, caption = ("times forgotten", "times learned"), LABELED_EVENTS
  else:
    classes = {name: by_set["test"] for name, by_set in predictions.items() if name in continued}
    events = {name: forgetting.events(array, array[0]) for name, array in classes.items()}
    labels, caption = ("times changed", "times changed back"), EVENTS
  yield from _figure("events", training_figures.event_histogram(events, labels), caption)
  last = [by_set["test"][-1] for by_set in predictions.values()]
  if label is not None and len(last) > 1:
    num_classes = 1 + int(max(label.max(), last[0].max(), last[-1].max()))
    first, final = (forgetting.confusion(classes, label, num_classes) for classes in (last[0], last[-1]))
    png = training_figures.confusion_change(final - first, (names[0], names[-1]))
    yield Figure("confusion", png, CONFUSION)


def _provenance(record: RunRecord) -> Section:
  """Keys, versions, commands and the config."""
  result = record.run.result
  devices, versions = result.get("devices", {}), result.get("versions", {})
  packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
  folder, network = shlex.quote(str(record.run.folder)), shlex.quote(record.stages[-1]["network"])
  commands = [
    f"python -m smskd_jax.report {folder}",
    f"python -m smskd_jax.export {folder} --network={network} --format=safetensors",
  ]
  return Section(
    "Provenance",
    [
      f"Run `{record.run.folder.absolute()}`, seed {record.seed}, on {devices.get('count', '?')} x "
      f"{devices.get('kind', '?')}; {packages or 'versions unknown'}; revision "
      f"{result.get('git_revision') or 'unknown'}.",
      tables.provenance(record),
      "Commands that write this report again, and that export the network of the last stage:",
      Code("\n".join(commands)),
      "Resolved config:",
      Code(json.dumps(record.run.config, indent=2), folded=True),
    ],
  )


def fidelity_sections(record: RunRecord, embedding: str = "pca") -> list[Section]:
  """Builds the section on the similarity of students and teachers.

  [] if nothing was recorded.

  Raises:
    UserError: a file of outputs is damaged.
  """

  def build(network_stages: Sequence[Stage]) -> list[Part]:
    teacher_pairs = fidelity.read_teacher_pairs(record, network_stages)
    return [] if teacher_pairs is None else list(_fidelity_parts(record, teacher_pairs, embedding))

  section = _section_by_network("Fidelity", record, build)
  return [] if section is None else [section]


def _fidelity_parts(record: RunRecord, teacher_pairs: TeacherPairs, embedding: str) -> Iterator[Part]:
  yield from _fidelity_table(teacher_pairs)
  yield from _reliability(teacher_pairs)
  yield from _correlations(teacher_pairs)
  yield from _cka(teacher_pairs)
  yield from _embeddings(record, teacher_pairs, embedding)
  yield from _class_accuracy(record, teacher_pairs.last_stage)


def _fidelity_table(teacher_pairs: TeacherPairs) -> Iterator[Table]:
  gaps = {
    (pair.stage["key"], pair.teacher_index): fidelity.mean_correlation_gap(
      student.correlation, teacher.correlation
    )
    for pair, student, teacher in teacher_pairs.complete_pairs()
  }
  rows = []
  for pair in teacher_pairs.pairs:
    values = gaps.get((pair.stage["key"], pair.teacher_index)), _embedding_cka(fidelity.cka_table(pair))
    if values != (None, None):
      cells = ("-" if value is None or math.isnan(value) else f"{value:.3f}" for value in values)
      rows.append([pair.stage["name"], pair.teacher, *cells])
  if rows:
    header = ["stage", "teacher", "difference of the correlations", "CKA of the embeddings"]
    yield Table(header, rows, FIDELITY)


def _embedding_cka(table: Mapping[str, Any] | None) -> float | None:
  """CKA of the embeddings from a table of all features; None if a side has no embedding."""
  if not table or not "embedding" == table["student"][-1] == table["other"][-1]:
    return None
  return table["cka"][-1][-1]


def _reliability(teacher_pairs: TeacherPairs) -> Iterator[Part]:
  last = teacher_pairs.last_stage
  calibrations = {key: s.calibration for key, s in teacher_pairs.summaries.items()}
  named = {
    f"after {last['name']}": calibrations.get(last["key"]),
    "its teachers, averaged" if len(last["inputs"]["teachers"]) > 1 else "its teacher": (
      teacher_pairs.teacher_calibration
    ),
    "its reference": calibrations.get(last["inputs"]["reference"]),
  }
  known = {name: c for name, c in named.items() if c is not None}
  if known:
    caption = RELIABILITY.format(bins=teacher_pairs.bins)
    yield Figure("reliability", fidelity_figures.reliability(known), caption)


def _correlations(teacher_pairs: TeacherPairs) -> Iterator[Part]:
  panels = []
  for pair, student, teacher in teacher_pairs.complete_pairs():
    a, b = student.correlation, teacher.correlation
    panels.append((f"{pair.title}\nmean {fidelity.mean_correlation_gap(a, b):.3f}", np.abs(a - b)))
  if panels:
    png = fidelity_figures.correlation_gaps(panels[-MAX_PANELS:])
    yield Figure("correlations", png, CORRELATIONS + _omission_note(len(panels)))


def _cka(teacher_pairs: TeacherPairs) -> Iterator[Part]:
  known = [(pair, table) for pair in teacher_pairs.pairs if (table := fidelity.cka_table(pair))]
  if not known:
    return
  last = teacher_pairs.summaries.get(known[-1][0].stage["key"])
  index = None if last is None else last.image_index
  images = "the test images with saved features" if index is None else f"{len(index):,} test images"
  png = fidelity_figures.cka([(pair.title, table) for pair, table in known[-MAX_PANELS:]])
  yield Figure("cka", png, CKA.format(images=images) + _omission_note(len(known)))


def _omission_note(count: int) -> str:
  if count <= MAX_PANELS:
    return ""
  return f" Only the last {MAX_PANELS} of {count} pairs of a stage and a teacher are shown."


def _embeddings(record: RunRecord, teacher_pairs: TeacherPairs, kind: str) -> Iterator[Part]:
  """Yields a figure of embeddings of teachers and of the last two stages."""
  last_stage = teacher_pairs.last_stage
  teachers = {pair.teacher_key: pair.teacher for pair in teacher_pairs.pairs if pair.stage is last_stage}
  students = {pair.stage["key"]: f"after {pair.stage['name']}" for pair in teacher_pairs.pairs}
  students = {key: name for key, name in students.items() if key not in teachers}
  names = dict([*teachers.items()][:MAX_TEACHER_EMBEDDINGS] + [*students.items()][-2:])
  last = teacher_pairs.summaries.get(last_stage["key"])
  if teacher_pairs.label is None or last is None or last.image_index is None:
    return
  label, num_classes = teacher_pairs.label[last.image_index], len(last.correlation)
  shown = label < MAX_CLASSES_EMBEDDED
  if not shown.any():
    return
  embedded = {}
  for key in names:
    s = teacher_pairs.summaries.get(key)
    # Stages of a shared store may have saved the features of other images.
    if (
      s
      and s.image_index is not None
      and s.embedding is not None
      and np.array_equal(s.image_index, last.image_index)
    ):
      embedded[key] = fidelity.EMBEDDINGS[kind](s.embedding[shown])
  if not embedded:
    return
  first = next(iter(embedded.values()))
  panels = [(names[key], fidelity.align_signs(e, first)) for key, e in embedded.items()]
  class_names = dict(enumerate(fidelity.class_names(record, num_classes)[:MAX_CLASSES_EMBEDDED]))
  png = fidelity_figures.embeddings(panels, label[shown], class_names)
  is_all = num_classes <= MAX_CLASSES_EMBEDDED
  classes = "all classes" if is_all else f"the first {MAX_CLASSES_EMBEDDED} of {num_classes} classes"
  yield Figure("embeddings", png, EMBEDDINGS[kind].format(images=f"{shown.sum():,}", classes=classes))


def _class_accuracy(record: RunRecord, last: Stage) -> Iterator[Part]:
  """Yields a figure of the accuracy by class of the last stage of a network."""
  by_class = last.get("by_class", {}).get("test", {})
  values = {name: np.array(numbers, float) for name, numbers in by_class.items()}
  changes = {
    role: values[f"{role}_accuracy_delta"] for role in CLASS_ROLES if f"{role}_accuracy_delta" in values
  }
  if last["inputs"]["reference"] == stages.ancestors(record.stages, last)[0]["key"]:
    changes.pop("earlier_1", None)  # equal to the reference
  changes = {role: change for role, change in changes.items() if not np.isnan(change).all()}
  if "accuracy" not in values or not changes:
    return
  num_classes = len(values["accuracy"])
  order_role = next(role for role in reversed(CLASS_ROLES) if role in changes)
  shown = np.arange(num_classes)
  description = "each class"
  if num_classes > MAX_CLASSES_LISTED:
    shown = fidelity.most_changed(changes[order_role], NUM_CLASSES_EACH)
    description = (
      f"the {NUM_CLASSES_EACH} of {num_classes} classes with the largest gains, and those with the largest losses, "
      f"against {CLASS_ROLES[order_role][1]}"
    )
  if not len(shown):
    return
  names = fidelity.class_names(record, num_classes)
  by_name = {CLASS_ROLES[role][0]: change[shown] for role, change in changes.items()}
  png = fidelity_figures.class_accuracy(values["accuracy"][shown], by_name, [names[i] for i in shown])
  others = " and of ".join(CLASS_ROLES[role][1] for role in changes)
  yield Figure("classes", png, CLASSES.format(stage=last["name"], classes=description, others=others))
