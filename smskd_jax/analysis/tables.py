"""Tables of the stages of runs. Missing values are '-'.

Columns without any value are left out.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from smskd_jax.analysis import forgetting
from smskd_jax.analysis.document import Table
from smskd_jax.analysis.records import RunRecord
from smskd_jax.analysis.stages import Stage, ancestors
from smskd_jax.runtime import console

Column = tuple[
  str, Callable[[Stage], Any], Callable[[Any], str]
]  # title, value of a stage, format of a value
TOP_K = range(2, 6)
ROLES = ("student", "teachers", "reference")  # of a stage's forward passes in result.json


def percent(fraction: float | None) -> str:
  """Formats a fraction; '-' for None."""
  return "-" if fraction is None else f"{100 * fraction:.2f} %"


def integer(number: float | None) -> str:
  """Formats a count; '-' for 0 and None."""
  return f"{number:,}" if number else "-"


def decimals(value: float) -> str:
  """Formats a number with three decimals."""
  return f"{value:.3f}"


def metric_value(checkpoint: str, metric: str) -> Callable[[Stage], Any]:
  """Returns a function from a stage to a metric at one of its checkpoints, or None.

  Checkpoints are 'last', 'best_by_validation' and 'oracle'.
  """
  return lambda stage: (stage["metrics"].get(checkpoint) or {}).get(metric)


def accuracy(stages: Sequence[Stage]) -> Table:
  """Test accuracy at the last, the best validated and the best epoch."""
  columns: list[Column] = [
    ("network", lambda stage: stage["network"], str),
    ("model", lambda stage: stage.get("model"), str),
    ("methods", lambda stage: " + ".join(stage.get("methods", ())) or None, str),
    ("last epoch", metric_value("last", "test/accuracy"), percent),
    ("best by validation", metric_value("best_by_validation", "test/accuracy"), percent),
    ("its epoch", metric_value("best_by_validation", "epoch"), "{:g}".format),
    ("oracle", metric_value("oracle", "test/accuracy"), percent),
    ("its epoch", metric_value("oracle", "epoch"), "{:g}".format),
    *((f"top-{k}, last", metric_value("last", f"test/top{k}"), percent) for k in TOP_K),
  ]
  caption = (
    "Test accuracy at the end of each stage. No checkpoint is selected by the test set: `oracle` is the best epoch by "
    "test accuracy, for comparison with tables that select this way."
  )
  return _stage_table(stages, columns, caption)


def summary(stages: Sequence[Stage]) -> Table:
  """Accuracy, calibration and agreement of each stage in one table."""
  columns: list[Column] = [
    ("network", lambda stage: stage["network"], str),
    ("model", lambda stage: stage["model"], str),
    ("test", metric_value("last", "test/accuracy"), percent),
    *((f"top-{k}", metric_value("last", f"test/top{k}"), percent) for k in TOP_K),
    ("NLL", metric_value("last", "test/nll"), decimals),
    ("ECE", metric_value("last", "test/ece"), decimals),
    ("agreement with teacher", metric_value("last", "test/teacher_agreement"), percent),
    ("agreement with reference", metric_value("last", "test/reference_agreement"), percent),
    ("test, best by validation", metric_value("best_by_validation", "test/accuracy"), percent),
    ("at epoch", metric_value("best_by_validation", "epoch"), "{:g}".format),
    ("oracle", metric_value("oracle", "test/accuracy"), percent),
  ]
  caption = (
    "Test set, last epoch of each stage. No checkpoint is selected by the test set: `oracle` is the best epoch by test "
    "accuracy."
  )
  return _stage_table(stages, columns, caption)


def calibration(stages: Sequence[Stage]) -> Table:
  """Likelihood and calibration at the end of each stage."""
  names = {"nll": "NLL", "ece": "ECE", "ace": "ACE", "brier": "Brier"}
  columns: list[Column] = [
    (name, metric_value("last", f"test/{metric}"), decimals) for metric, name in names.items()
  ]
  caption = (
    "Test set, last epoch: negative log-likelihood in nats, expected and adaptive calibration error, and Brier score. "
    "Smaller is better."
  )
  return _stage_table(stages, columns, caption)


def _stage_table(stages: Sequence[Stage], columns: Sequence[Column], caption: str) -> Table:
  """Builds a table with a row for each stage from the columns that have a value."""
  shown = [column for column in columns if any(column[1](stage) is not None for stage in stages)]
  rows = []
  for stage in stages:
    values = [(value(stage), text) for _, value, text in shown]
    rows.append([stage["name"], *("-" if value is None else text(value) for value, text in values)])
  return Table(["stage", *(title for title, _, _ in shown)], rows, caption)


def pretrained(items: Sequence[Mapping[str, Any]]) -> Table | None:
  """Networks that came with their variables; None without any."""
  rows = [[i["network"], percent(i["metrics"]["test/accuracy"]), i["key"], i["source"]] for i in items]
  caption = "Networks that were loaded with their variables, not trained in this run."
  return Table(["pretrained network", "test", "key", "source"], rows, caption) if rows else None


def agreement(stages: Sequence[Stage]) -> Table | None:
  """Agreement with the teacher, the reference and earlier stages.

  None if nothing was recorded.
  """
  rows = []
  for stage in stages:
    last = stage["metrics"]["last"]
    names = {"teacher": "its teacher", "reference": "its reference"}
    names |= {
      f"earlier_{i}": f"itself after {earlier['name']}"
      for i, earlier in enumerate(ancestors(stages, stage)[:-1], start=1)
      if earlier["key"] != stage["inputs"]["reference"]  # the reference has its own row
    }
    for role, name in names.items():
      values = [last.get(f"test/{role}_{metric}") for metric in ("agreement", "regressions", "improvements")]
      kl = last.get(f"test/{role}_kl")
      if values[0] is not None:
        rows.append([stage["name"], name, *map(percent, values), "-" if kl is None else decimals(kl)])
  caption = (
    "Each network at the end of its stage compared with another network, on the test set. Agreement: equal "
    "predictions. Regressions: the other network is correct and this one is wrong. Improvements: the reverse. All in "
    "percent of the test images. KL: mean divergence from the other network, in nats."
  )
  return (
    Table(["stage", "compared with", "agreement", "regressions", "improvements", "KL"], rows, caption)
    if rows
    else None
  )


def forgotten(pairs: Sequence[forgetting.StagePair]) -> Table | None:
  """Kept, forgotten and gained images of each stage against its ancestors.

  None without pairs.
  """
  rows = []
  for stage, earlier, split, counts in pairs:
    before, now = counts.kept + counts.forgotten, counts.kept + counts.gained
    lost = f"{counts.forgotten:,}" + (f" ({100 * counts.forgotten / before:.1f} %)" if before else "")
    rows.append([stage, earlier, split, f"{before:,}", f"{now:,}"])
    rows[-1] += [f"{counts.kept:,}", lost, f"{counts.gained:,}", f"{counts.iou:.4f}"]
  header = [
    "stage",
    "earlier stage",
    "set",
    "correct then",
    "correct now",
    "kept",
    "forgotten",
    "gained",
    "IoU",
  ]
  caption = (
    "Images that a network classifies correctly at the end of an earlier stage (then) and of this stage (now). Kept: "
    "both times. Forgotten: only then. Gained: only now. IoU is kept / (kept + forgotten + gained), 1 for equal sets."
  )
  return Table(header, rows, caption) if rows else None


def extra_test_accuracy(stages: Sequence[Stage]) -> Table | None:
  """Accuracy on extra test sets, averaged over the severities of a corruption.

  None without extra sets.
  """
  values = [mean_over_severities(stage.get("extra_tests", {})) for stage in stages]
  names = list(dict.fromkeys(name for accuracies in values for name in accuracies))
  rows = [
    [stage["name"], *(percent(accuracies.get(name)) for name in names)]
    for stage, accuracies in zip(stages, values, strict=True)
  ]
  caption = (
    "Accuracy on extra test sets, which select nothing; for a corruption, the mean over its severities."
  )
  return Table(["stage", *names], rows, caption) if names else None


def mean_over_severities(accuracies: Mapping[str, float]) -> dict[str, float]:
  """Averages the accuracies of sets named 'NAME:SEVERITY' over the severities."""
  groups: dict[str, list[float]] = {}
  for name, value in accuracies.items():
    groups.setdefault(name.partition(":")[0], []).append(value)
  return {name: sum(values) / len(values) for name, values in groups.items()}


def compute_by_stage(stages: Sequence[Stage]) -> Table:
  """Epochs, steps, passes through the networks and time of each stage, and their sums."""
  rows = []
  totals = [0, 0, 0, 0, 0, 0.0]  # steps, forward, backward, teachers, reference, seconds
  for stage in stages:
    student, teachers, reference = (stage["forward_passes"][role] for role in ROLES)
    values = [
      *(stage["steps"], student, stage.get("backward_passes", 0), teachers, reference, stage["seconds"])
    ]
    totals = [total + value for total, value in zip(totals, values, strict=True)]
    rows.append([stage["name"], stage["network"], f"{stage['epochs']:,}", *_format_compute(values)])
  rows.append(["all", "", "", *_format_compute(totals)])
  header = ["stage", "network", "epochs", "steps", "student forward", "backward", "teachers forward"]
  caption = (
    "Images through each network; an image counts once for each view and each teacher. Evaluation is not counted. Time "
    "is training time on the devices listed at the end."
  )
  return Table([*header, "reference forward", "time"], rows, caption)


def _format_compute(values: Sequence[float]) -> list[str]:
  steps, *passes, seconds = values
  return [f"{steps:,}", *map(integer, passes), console.format_duration(seconds)]


def compute_by_network(record: RunRecord) -> Table:
  """Passes through each network over all stages, as student, teacher and reference."""
  totals: dict[str, list[float]] = {}

  def add(network: str, index: int, amount: float) -> None:
    totals.setdefault(network, [0] * 5)[index] += amount

  teachers = {entry["name"]: entry.get("teachers", ()) for entry in record.run.config.get("stages", ())}
  for stage in record.stages:
    forward, stage_teachers = stage["forward_passes"], teachers.get(stage["name"], ())
    add(stage["network"], 0, forward["student"])
    add(stage["network"], 1, stage.get("backward_passes", 0))
    for name in stage_teachers:
      add(name, 2, forward["teachers"] // len(stage_teachers))
    add(stage["network"], 3, forward["reference"])
    add(stage["network"], 4, stage["seconds"])
  rows = [
    [name, *map(integer, counts), console.format_duration(seconds) if seconds else "-"]
    for name, (*counts, seconds) in totals.items()
  ]
  header = ["network", "trained, forward", "backward", "as teacher", "as reference", "training time"]
  return Table(header, rows, "The same passes by network, over all stages.")


def stage_settings(stages: Sequence[Stage]) -> Table:
  """Methods, compute and key in the store of each stage."""
  header = ["stage", "methods", "epochs", "steps", "forward and backward", "teachers forward"]
  rows = []
  for stage in stages:
    row = [stage["name"], " + ".join(stage["methods"]) or "-", str(stage["epochs"]), f"{stage['steps']:,}"]
    passes = (integer(stage["forward_passes"][role]) for role in ROLES)
    rows.append([*row, *passes, console.format_duration(stage["seconds"]), stage["key"]])
  return Table([*header, "reference forward", "time", "key"], rows)


def prediction_stability(
  predictions: Mapping[str, Mapping[str, np.ndarray]], continued: Collection[str]
) -> Table:
  """Changes of the predicted classes of test images between evaluations.

  Args:
    predictions: classes [evaluations, n] by stage and set.
    continued: stages that continue from another stage, whose first predictions are meaningful.
  """
  rows = []
  for name, by_set in predictions.items():
    classes = by_set["test"]
    changes = forgetting.num_changes(classes)
    returned = forgetting.events(classes, classes[0]).gained > 0
    rows.append([name, f"{classes.shape[1]:,}", str(len(classes)), percent((changes == 0).mean())])
    since_start = [
      (images.mean() if name in continued else None) for images in (classes[-1] != classes[0], returned)
    ]
    rows[-1] += [f"{changes.mean():.2f}", *map(percent, since_start)]
  header = ["stage", "test images", "evaluations", "never changed", "changes per image"]
  caption = (
    "Predicted classes of the test images, correct or not, between the evaluations of a stage. The last two columns "
    "compare with the predictions at the start of the stage."
  )
  return Table([*header, "different from start", "changed and changed back"], rows, caption)


def provenance(record: RunRecord) -> Table:
  """Key in the store of each stage, and the software and devices that trained the stage."""
  rows = []
  for stage in record.stages:
    info = record.info.get(stage["name"], {})
    devices, versions = info.get("devices", {}), info.get("versions", {})
    device = f"{devices['count']} x {devices['kind']}" if {"count", "kind"} <= devices.keys() else "-"
    row = [stage["name"], stage["key"], device, versions.get("jax") or "-"]
    rows.append([*row, info.get("git_revision") or "-"])
  rows += [[item["network"], item["key"], "-", "-", item["source"]] for item in record.pretrained]
  caption = (
    "Keys in the store, and devices and software of each training; for a pretrained network, its source."
  )
  return Table(["stage", "key", "devices", "jax", "revision"], rows, caption)
