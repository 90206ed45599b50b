"""Two runs, or two studies, beside each other. Differences are those of B less A."""

from collections.abc import Callable, Mapping, Sequence
import json
from typing import Any

from smskd_jax.analysis import statistics
from smskd_jax.analysis.page import Part, Section, Table
from smskd_jax.analysis.records import Record, Stage
from smskd_jax.analysis.study_records import StudyRecord
from smskd_jax.runtime import console

ABSENT = "absent"
LONGEST = 60  # characters of a value
# What the table of metrics tells of, of all that the evaluations say; in percent or as they are.
SHARES = (
  "accuracy", "teacher_agreement", "reference_agreement", "reference_lost", "reference_won", "earlier_1_lost",
)  # fmt: skip
NUMBERS = "nll", "ece", "ace", "brier", "teacher_kl", "reference_kl", "earlier_1_iou"
COSTS = {"images": "images forward and backward", "frozen": "images through frozen networks"}

Outcomes = Mapping[str, Mapping[int, Any]]  # studies.table.Outcome by variant and seed


def differences(field: str, one: Any, other: Any) -> list[tuple[str, Any, Any]]:
  """Every field in which two configs differ, with both values; items of lists that have names are paired by them."""
  if isinstance(one, list) and isinstance(other, list):
    named = _by_name(one), _by_name(other)
    if named[0] is not None and named[1] is not None:
      both = [name for name in named[0] if name in named[1]]
      order = [name for name in named[1] if name in named[0]]
      moved = [(f"{field} (order)", both, order)] if both != order else []
      return [*moved, *differences(field, *named)]
    one, other = (dict(enumerate(items)) for items in (one, other))
  if not (isinstance(one, dict) and isinstance(other, dict)):
    return [] if one == other else [(field, one, other)]
  found = []
  for name in dict.fromkeys((*one, *other)):
    below = f"{field}[{name}]" if isinstance(name, int) else f"{field}.{name}" if field else str(name)
    found += differences(below, one.get(name, ABSENT), other.get(name, ABSENT))
  return found


def _by_name(items: Sequence[Any]) -> dict[str, Any] | None:
  """The items by their names, which are all different; None where they have none."""
  if not all(isinstance(item, dict) and "name" in item for item in items):
    return None
  found = {item["name"]: item for item in items}
  return found if len(found) == len(items) else None


def of_runs(a: Record, b: Record) -> Section:
  """Two runs: configs, software, metrics by stage, and what may be concluded."""
  return Section(
    f"{a.title} and {b.title}",
    [
      f"A is `{a.run.folder}`, B is `{b.run.folder}`.",
      f"**{_verdict_of_runs(a, b)}**",
      *_data(a.run.config, b.run.config),
      _configs(a.run.config, b.run.config),
      *_surroundings(a, b),
      *_metrics(a, b),
      *_unpaired("stage", [s["name"] for s in a.stages], [s["name"] for s in b.stages]),
      _costs(a, b),
    ],
  )


def _verdict_of_runs(a: Record, b: Record) -> str:
  keys = [[stage["key"] for stage in record.stages] for record in (a, b)]
  if keys[0] == keys[1]:
    return "These are the same stages, by their keys: every number is the same."
  words = "One pair of runs decides nothing"
  if a.seed != b.seed:
    return (
      f"{words}, and these differ by their seeds too: what is config and what is chance cannot be told apart."
    )
  return (
    f"{words}: with the same seed, {a.seed}, two configs still differ by chance. Run both with several seeds, as two "
    "variants of a study, before anything is claimed."
  )


def _data(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Part]:
  """A warning where two configs do not have the same test images."""
  of = lambda config: {
    name: config.get("data", {}).get(name, 0) for name in ("source", "folder", "image_size")
  }
  if not differences("data", of(a), of(b)):
    return []
  return [
    "**The data differ: these numbers are not of the same test images, and their difference means nothing.**"
  ]


def _configs(a: Any, b: Any) -> Table | str:
  rows = [[field, _short(one), _short(other)] for field, one, other in differences("", a, b)]
  return (
    Table(["config", "A", "B"], rows, "Every field that differs.") if rows else "The configs are the same."
  )


def _short(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _surroundings(a: Record, b: Record) -> list[Part]:
  """Software and devices, where they differ: they change numbers too."""
  of = lambda record: {
    name: record.run.result.get(name) for name in ("data", "versions", "devices", "git_revision")
  }
  rows = [[field, _short(one), _short(other)] for field, one, other in differences("", of(a), of(b))]
  return [Table(["made with", "A", "B"], rows, "Data, software and devices that differ.")] if rows else []


def _metrics(a: Record, b: Record) -> list[Part]:
  theirs = {stage["name"]: stage for stage in b.stages}
  pairs = [(stage, theirs[stage["name"]]) for stage in a.stages if stage["name"] in theirs]
  if not pairs:
    return ["No stage of A has the name of one of B: there is nothing to compare."]
  same = [stage["name"] for stage, other in pairs if stage["key"] == other["key"]]
  words = (
    [f"- by their keys, A and B have the same stage{'s'[len(same) == 1 :]} {', '.join(same)}"] if same else []
  )
  rows = [
    [stage["name"], *row]
    for stage, other in pairs
    if stage["name"] not in same
    for row in _rows(stage["metrics"]["last"], other["metrics"]["last"])
  ]
  caption = "On the test set, at the last epoch of stages of the same name."
  return [*words, *([Table(["stage", "metric", "A", "B", "B - A"], rows, caption)] if rows else ())]


def _rows(one: Mapping[str, float], other: Mapping[str, float]) -> list[list[str]]:
  rows = []
  for names, scale, decimals, unit in ((SHARES, 100, 2, " [%]"), (NUMBERS, 1, 4, "")):
    for name in names:
      values = [side.get(f"test/{name}") for side in (one, other)]
      if None not in values:
        first, second = (scale * value for value in values if value is not None)
        row = [f"{first:.{decimals}f}", f"{second:.{decimals}f}", f"{second - first:+.{decimals}f}"]
        rows.append([name.replace("_", " ") + unit, *row])
  return rows


def _unpaired(kind: str, a: Sequence[str], b: Sequence[str]) -> list[Part]:
  """What only one side has."""
  lines = []
  for side, own, others in (("A", a, b), ("B", b, a)):
    names = [name for name in own if name not in others]
    if names:
      lines.append(f"- only {side} has the {kind}{'s'[len(names) == 1 :]} {', '.join(names)}")
  return ["\n".join(lines)] if lines else []


def _costs(a: Record, b: Record) -> Table:
  def of(stages: Sequence[Stage]) -> list[int]:
    passes = [stage["forward_passes"] for stage in stages]
    return [sum(of["student"] for of in passes), sum(of["teachers"] + of["reference"] for of in passes)]

  rows = [
    [label, *(f"{n:,}" for n in numbers), f"{numbers[1] - numbers[0]:+,}"]
    for label, *numbers in zip(COSTS.values(), of(a.stages), of(b.stages), strict=True)
  ]
  seconds = [sum(stage["seconds"] for stage in record.stages) for record in (a, b)]
  rows.append(["time", *map(console.format_duration, seconds), ""])
  return Table(
    ["cost of all stages", "A", "B", "B - A"], rows, "A gain at another cost is no gain of the method alone."
  )


def of_studies(
  studies: Sequence[StudyRecord],
  outcomes: Sequence[Outcomes],
  claims: Callable[[statistics.Sides], Sequence[Part]],
) -> Section:
  """Two studies: configs, and each variant of the same name over the seeds that both have.

  Args:
    studies: A and B.
    outcomes: theirs.
    claims: makes the table of a family of claims.
  """
  a, b = studies
  values = [
    {name: {s: of.accuracy for s, of in seeds.items()} for name, seeds in found.items()} for found in outcomes
  ]
  common = [name for name in values[0] if name in values[1]]
  sides = {name: (values[1][name], values[0][name]) for name in common}
  parts: list[Part] = [f"A is `{a.folder}`, B is `{b.folder}`."]
  if sides:
    variants = [study.study["variants"][common[0]] for study in studies]
    parts += _data(*variants)
    words = [f"- `{claim.name}`: {_verdict(claim)}" for claim in statistics.family(sides)]
    parts += ["\n".join(words), "Test accuracy in percent, B less A, seed by seed:", *claims(sides)]
    if max(len(ours.keys() & theirs.keys()) for ours, theirs in sides.values()) < 2:
      parts.insert(1, f"**{statistics.SINGLE_SEED}**")
    parts.append(_costs_of_variants(common, *outcomes))
  else:
    parts.append("No variant of A has the name of one of B: there is nothing to compare.")
  parts += _unpaired("variant", list(values[0]), list(values[1]))
  parts.append(_configs(a.study, b.study))
  return Section(f"{a.folder.absolute().name} and {b.folder.absolute().name}", parts)


def _verdict(claim: statistics.Claim) -> str:
  of = claim.paired
  if of.mean is None:
    return "nothing can be said: A and B have no seed in common"
  seeds = f"over {of.n} shared seed{'s'[of.n == 1 :]}"
  if of.mean == 0 and not of.std:
    return f"no difference, {seeds}"
  by = f"{of.mean:+.2f} points {seeds}, exact p {of.exact_p:.3f}, after Holm {claim.exact_holm:.3f}"
  if claim.verdict.decision == "undecided":
    return f"{claim.verdict} ({by})"
  return f"B is {claim.verdict} than A ({by})"


def _costs_of_variants(names: Sequence[str], a: Outcomes, b: Outcomes) -> Table:
  rows = []
  for name in names:
    first, second = (next(iter(found[name].values()), None) for found in (a, b))
    if first is not None and second is not None:
      for field, label in COSTS.items():
        one, other = getattr(first, field), getattr(second, field)
        rows.append([name, label, f"{one:,}", f"{other:,}", f"{other - one:+,}"])
  caption = "What a variant costs. A gain at another cost is no gain of the method alone."
  return Table(["variant", "cost", "A", "B", "B - A"], rows, caption)
