"""Comparison of two runs or two studies, A and B. Differences are B minus A."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from smskd_jax.analysis import statistics, study_report
from smskd_jax.analysis.document import Part, Section, Table
from smskd_jax.analysis.records import RunRecord, StudyRecord
from smskd_jax.analysis.stages import Stage
from smskd_jax.runtime import console

ABSENT = "absent"
MAX_VALUE_LENGTH = 60  # characters
# Metrics of an evaluation that are compared: fractions, shown in percent, and other numbers.
FRACTIONS = (
  "accuracy", "teacher_agreement", "reference_agreement", "reference_regressions", "reference_improvements",
  "earlier_1_regressions",
)  # fmt: skip
NUMBERS = "nll", "ece", "ace", "brier", "teacher_kl", "reference_kl", "earlier_1_iou"
COSTS = {"images": "images forward and backward", "frozen": "images through frozen networks"}
COST_CAPTION = "A gain at a different cost cannot be attributed to the method alone."


def config_differences(field: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
  """Lists the fields in which two configs differ, with both values.

  List items with names are paired by name.
  """
  if isinstance(one, list) and isinstance(other, list):
    named = _index_by_name(one), _index_by_name(other)
    if named[0] is not None and named[1] is not None:
      order_a = [name for name in named[0] if name in named[1]]
      order_b = [name for name in named[1] if name in named[0]]
      moved = [(f"{field} (order)", order_a, order_b)] if order_a != order_b else []
      return [*moved, *config_differences(field, *named)]
    one, other = (dict(enumerate(items)) for items in (one, other))
  if not (isinstance(one, dict) and isinstance(other, dict)):
    return [] if one == other else [(field, one, other)]
  differences = []
  for name in dict.fromkeys((*one, *other)):
    path = f"{field}[{name}]" if isinstance(name, int) else f"{field}.{name}" if field else str(name)
    differences += config_differences(path, one.get(name, ABSENT), other.get(name, ABSENT))
  return differences


def _index_by_name(items: Sequence[Any]) -> dict[str, Any] | None:
  """Returns the items by name; None unless every item has a name of its own."""
  if not all(isinstance(item, dict) and "name" in item for item in items):
    return None
  by_name = {item["name"]: item for item in items}
  return by_name if len(by_name) == len(items) else None


def compare_runs(a: RunRecord, b: RunRecord) -> Section:
  """Compares configs, software, metrics by stage and costs of two runs."""
  return Section(
    f"{a.title} and {b.title}",
    [
      f"A is `{a.run.folder}`, B is `{b.run.folder}`.",
      f"**{_run_verdict(a, b)}**",
      *_data_warning(a.run.config, b.run.config),
      _config_table(a.run.config, b.run.config),
      *_environment_table(a, b),
      *_metrics_table(a, b),
      *_list_unpaired("stage", [s["name"] for s in a.stages], [s["name"] for s in b.stages]),
      _run_costs(a, b),
    ],
  )


def _run_verdict(a: RunRecord, b: RunRecord) -> str:
  if [stage["key"] for stage in a.stages] == [stage["key"] for stage in b.stages]:
    return "A and B have the same stages, with equal keys: every number is the same."
  if a.seed != b.seed:
    return (
      "One pair of runs decides nothing, and these differ in their seeds too: effects of the config and of the seed "
      "cannot be separated."
    )
  return (
    f"One pair of runs decides nothing: with the same seed, {a.seed}, two configs still differ by chance. Run both "
    "with several seeds, as two variants of a study, before making a claim."
  )


def _data_warning(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Part]:
  """Warning for two configs with different test images."""
  fields = "source", "folder", "image_size"
  data = ({name: config.get("data", {}).get(name, 0) for name in fields} for config in (a, b))
  if not config_differences("data", *data):
    return []
  return ["**The data differ: A and B have different test images, and their difference means nothing.**"]


def _config_table(a: Any, b: Any) -> Table | str:
  rows = [
    [field, _format_value(one), _format_value(other)] for field, one, other in config_differences("", a, b)
  ]
  return (
    Table(["config", "A", "B"], rows, "Every field that differs.") if rows else "The configs are the same."
  )


def _format_value(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."


def _environment_table(a: RunRecord, b: RunRecord) -> list[Part]:
  """Table of differing software and devices, which change numbers too."""
  fields = "data", "versions", "devices", "git_revision"
  environments = ({name: record.run.result.get(name) for name in fields} for record in (a, b))
  rows = [
    [field, _format_value(one), _format_value(other)]
    for field, one, other in config_differences("", *environments)
  ]
  caption = "Data, software and devices that differ."
  return [Table(["environment", "A", "B"], rows, caption)] if rows else []


def _metrics_table(a: RunRecord, b: RunRecord) -> list[Part]:
  b_stages = {stage["name"]: stage for stage in b.stages}
  pairs = [(stage, b_stages[stage["name"]]) for stage in a.stages if stage["name"] in b_stages]
  if not pairs:
    return ["No stage of A has the name of a stage of B: there is nothing to compare."]
  parts: list[Part] = []
  equal = [stage["name"] for stage, other in pairs if stage["key"] == other["key"]]
  if equal:
    parts.append(f"- A and B share the stage{'s'[len(equal) == 1 :]} {', '.join(equal)} (equal keys)")
  rows = [
    [stage["name"], *row]
    for stage, other in pairs
    if stage["name"] not in equal
    for row in _metric_rows(stage["metrics"]["last"], other["metrics"]["last"])
  ]
  if rows:
    caption = "Test set, last epoch of the stages of the same name."
    parts.append(Table(["stage", "metric", "A", "B", "B - A"], rows, caption))
  return parts


def _metric_rows(one: Mapping[str, float], other: Mapping[str, float]) -> list[list[str]]:
  rows = []
  for names, scale, decimals, unit in ((FRACTIONS, 100, 2, " [%]"), (NUMBERS, 1, 4, "")):
    for name in (f"test/{name}" for name in names):
      if name in one and name in other:
        a, b = scale * one[name], scale * other[name]
        label = name.removeprefix("test/").replace("_", " ") + unit
        rows.append([label, f"{a:.{decimals}f}", f"{b:.{decimals}f}", f"{b - a:+.{decimals}f}"])
  return rows


def _list_unpaired(kind: str, a: Sequence[str], b: Sequence[str]) -> list[Part]:
  """Lists the names that only one side has."""
  lines = []
  for side, names, other_names in (("A", a, b), ("B", b, a)):
    unpaired = [name for name in names if name not in other_names]
    if unpaired:
      lines.append(f"- only {side} has the {kind}{'s'[len(unpaired) == 1 :]} {', '.join(unpaired)}")
  return ["\n".join(lines)] if lines else []


def _run_costs(a: RunRecord, b: RunRecord) -> Table:
  costs = [_count_images(record.stages) for record in (a, b)]
  rows = [
    [label, f"{one:,}", f"{other:,}", f"{other - one:+,}"]
    for label, one, other in zip(COSTS.values(), *costs, strict=True)
  ]
  seconds = [sum(stage["seconds"] for stage in record.stages) for record in (a, b)]
  rows.append(["time", *map(console.format_duration, seconds), ""])
  return Table(["cost of all stages", "A", "B", "B - A"], rows, COST_CAPTION)


def _count_images(stages: Sequence[Stage]) -> tuple[int, int]:
  """Images through the trained networks, and through teachers and references."""
  passes = [stage["forward_passes"] for stage in stages]
  return sum(p["student"] for p in passes), sum(p["teachers"] + p["reference"] for p in passes)


def compare_studies(a: StudyRecord, b: StudyRecord) -> Section:
  """Compares configs, and the variants of one name over the common seeds."""
  outcomes = a.outcomes, b.outcomes
  values = [
    {name: {seed: o.accuracy for seed, o in by_seed.items()} for name, by_seed in study.items()}
    for study in outcomes
  ]
  common = [name for name in values[0] if name in values[1]]
  claims = {name: (values[1][name], values[0][name]) for name in common}
  parts: list[Part] = [f"A is `{a.folder}`, B is `{b.folder}`."]
  if claims:
    if max(len(ours.keys() & theirs.keys()) for ours, theirs in claims.values()) < 2:
      parts.append(f"**{statistics.SINGLE_SEED}**")
    parts += _data_warning(*(study.config["variants"][common[0]] for study in (a, b)))
    lines = [f"- `{claim.name}`: {_format_claim(claim)}" for claim in statistics.compare_all(claims)]
    parts += ["\n".join(lines), "Test accuracy in percent, B minus A, seed by seed:"]
    parts += [study_report.claims_table(claims), _study_costs(common, *outcomes)]
  else:
    parts.append("No variant of A has the name of a variant of B: there is nothing to compare.")
  parts += _list_unpaired("variant", list(values[0]), list(values[1]))
  parts.append(_config_table(a.config, b.config))
  return Section(f"{a.folder.absolute().name} and {b.folder.absolute().name}", parts)


def _format_claim(claim: statistics.Claim) -> str:
  comparison, verdict = claim.paired, claim.exact_verdict
  if comparison.mean is None:
    return "no comparison: A and B have no seed in common"
  seeds = f"over {comparison.n} shared seed{'s'[comparison.n == 1 :]}"
  if comparison.mean == 0 and not comparison.std:
    return f"no difference, {seeds}"
  p_values = f"exact p {comparison.exact_p:.3f}, after Holm {claim.exact_holm:.3f}"
  numbers = f"{comparison.mean:+.2f} points {seeds}, {p_values}"
  if verdict.decision == "undecided":
    return f"{verdict} ({numbers})"
  return f"B is {verdict} than A ({numbers})"


def _study_costs(names: Sequence[str], a: study_report.Outcomes, b: study_report.Outcomes) -> Table:
  rows = []
  for name in names:
    first, second = (next(iter(outcomes[name].values()), None) for outcomes in (a, b))
    if first is not None and second is not None:
      for field, label in COSTS.items():
        one, other = getattr(first, field), getattr(second, field)
        rows.append([name, label, f"{one:,}", f"{other:,}", f"{other - one:+,}"])
  return Table(["variant", "cost", "A", "B", "B - A"], rows, COST_CAPTION)
