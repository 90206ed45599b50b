"""Reports of studies: the summary that a study writes, and the full report with figures."""

from collections.abc import Mapping, Sequence
import json
import math
import shlex
from typing import Any

import numpy as np

from smskd_jax.analysis import (
  forgetting,
  run_report,
  stages,
  statistics,
  study_figures,
  tables,
  training_figures,
)
from smskd_jax.analysis.document import Code, Figure, Part, Section, Table
from smskd_jax.analysis.records import Outcome, RunRecord, StudyRecord, variant_controls
from smskd_jax.analysis.study_figures import WeightPoint
from smskd_jax.analysis.training_figures import CountBar
from smskd_jax.training.metrics import Overlap

Outcomes = Mapping[str, Mapping[int, Outcome]]  # by variant and seed

BY_STAGE = (
  "Test accuracy in percent at the end of each stage that the result of a variant continues from: mean and standard "
  "deviation over seeds. Variants with the same first stages share their first points."
)
BY_COST = (
  "Final test accuracy in percent, mean and standard deviation over seeds, against cost. Above: images of the student, "
  "forward and backward. Below: images of frozen networks (teachers and references), forward. Points of equal cost are "
  "shifted a little."
)
ALONG_TRAINING = (
  "Along the epochs of the student's training, mean and standard deviation over seeds: test accuracy; test images that "
  "were correct after the first stage and are wrong now; agreement of the predictions with the reference of the stage."
)
COUNTS = (
  "Test images that are correct at the end of the student's first and last stage (kept), of the first only "
  "(forgotten), and of the last only (gained): means over seeds."
)
WEIGHTS = (
  "Variants that differ only in the weight of the last stage's reference term (0: no reference): IoU of the sets of "
  "test images that are correct after the first and after the last stage, images forgotten and gained in between, and "
  "test accuracy; mean and standard deviation over seeds."
)


def summary(title: str, study: Mapping[str, Any], outcomes: Outcomes, failures: Mapping[str, str]) -> Section:
  """Builds the summary of a study: variants, and comparisons with controls or claims.

  Args:
    title: of the report.
    study: resolved config.
    outcomes: of the finished runs, by variant and seed.
    failures: error of each failed unit.
  """
  parts: list[Part] = []
  if max(map(len, outcomes.values())) == 1:
    parts.append(f"**{statistics.SINGLE_SEED}**")
  parts.append(
    f"Test accuracy in percent of `{study['network']}` at the end of its last stage, mean ± standard deviation over n "
    "seeds; `oracle` is the best epoch by test accuracy, which selects nothing else. IoU compares the sets A and B of "
    "test images that are correct at the end of the first and of the last stage, |A and B| / |A or B|; forgotten "
    "images are correct after the first stage only."
  )
  parts.append(variants_table(study, outcomes))
  parts += [f"- {note}" for note in study.get("notes", ())]
  parts += comparisons(study, outcomes)
  if failures:
    parts.append("\n".join(f"- failed: {unit}: {error}" for unit, error in failures.items()))
  return Section(title, parts)


def full_report(record: StudyRecord) -> Section:
  """Builds the full report of a study from its records."""
  title = f"{record.folder.absolute().name}: a study of {len(record.runs)} variants"
  if record.max_seeds == 1:
    title += f" ({run_report.ONE_SEED})"
  outcomes = record.outcomes
  results = [*summary(title, record.config, outcomes, record.failures).parts]
  results += published_table(record.config, outcomes)
  if record.unfinished:
    results.insert(0, f"**Not finished yet: {', '.join(record.unfinished)}.**")
  sections = [Section("Results", results), _comparison_figures(record, outcomes)]
  if forgotten := _forgetting(record):
    sections.append(Section("Forgetting of the first stage", forgotten))
  if record.teachers is not None:
    s = record.teachers.stages
    teacher_tables = [tables.accuracy(s), tables.calibration(s), tables.compute_by_stage(s)]
    sections.append(Section("Teachers shared by the variants", teacher_tables, folded=True))
  for name, by_seed in record.runs.items():
    for seed, run in list(by_seed.items())[:1]:
      text = f"The first finished seed of the variant, as an example; the full report of `{run.run.folder}` shows more."
      parts = [text, *run_report.results(run), tables.compute_by_stage(run.stages)]
      parts += run_report.training_sections(run)
      sections.append(Section(f"{name}, seed {seed}", parts, folded=True))
  warnings: list[Part] = ["\n".join(f"- {line}" for line in record.warnings)] if record.warnings else []
  return Section(title, [*warnings, *sections, _provenance(record)])


def variants_table(study: Mapping[str, Any], outcomes: Outcomes) -> Table:
  """Accuracy, forgetting and cost of each variant, beside the accuracy that a paper reports."""
  header = ["variant", "n", "test", "oracle", "agreement with teacher", "IoU with stage 1", "forgotten"]
  header += ["forward and backward", "frozen forward", "hours"]
  published = study["published"]
  if published:
    header += ["paper", "ours - paper (t 95 %)"]
  rows = []
  for name, by_seed in outcomes.items():
    runs = list(by_seed.values())
    row = [name, str(len(runs))]
    formats = {"accuracy": 2, "oracle": 2, "agreement": 2, "iou": 4, "forgotten": 1}
    for field, num_decimals in formats.items():
      values = [value for run in runs if (value := getattr(run, field)) is not None]
      row.append(statistics.summary(values).text(num_decimals))
    # A mean: one seed may have computed the cached outputs of a teacher for all seeds.
    row += [_format_mean([getattr(run, field) for run in runs]) for field in ("images", "frozen")]
    row.append(f"{sum(run.seconds for run in runs) / 3600:.2f}")
    if published:
      row += _paper_cells([run.accuracy for run in runs], published.get(name))
    rows.append(row)
  for name, accuracy in study.get("quoted", {}).items():
    rows.append([name, "0", *["-"] * (len(header) - 4), f"{accuracy:.2f}", "-"])
  return Table(header, rows)


def _format_mean(values: Sequence[float]) -> str:
  return f"{sum(values) / len(values):,.0f}" if values else "-"


def _paper_cells(accuracies: Sequence[float], paper: float | None) -> list[str]:
  """Accuracy of a paper, and our difference with the t interval of our mean.

  The paper's spread is unknown.
  """
  if paper is None:
    return ["-", "-"]
  seeds = range(len(accuracies))
  comparison = statistics.paired_comparison(
    dict(zip(seeds, accuracies, strict=True)), dict.fromkeys(seeds, paper)
  )
  interval = "" if comparison.t_interval is None else f" ({comparison.t_interval.text()})"
  return [f"{paper:.2f}", _format_difference(comparison) + interval]


def _format_difference(comparison: statistics.PairedComparison) -> str:
  return "-" if comparison.mean is None else f"{comparison.mean:+.2f}"


def published_table(study: Mapping[str, Any], outcomes: Outcomes) -> list[Part]:
  """Our accuracies beside those of a paper, with differences.

  Differences are in points and in standard errors.
  """
  rows = []
  for name, paper in study.get("published", {}).items():
    ours = statistics.summary([outcome.accuracy for outcome in outcomes.get(name, {}).values()])
    difference = errors = "-"
    if ours.mean is not None:
      difference = f"{ours.mean - paper:+.2f}"
      if ours.std:
        errors = f"{(ours.mean - paper) / (ours.std / math.sqrt(ours.n)):+.1f}"
    rows.append([name, str(ours.n), ours.text(), f"{paper:.2f}", difference, errors])
  caption = (
    "Numbers of the paper are quoted, not measured here. Differences are ours minus the paper's, in points and in "
    "standard errors of our mean; the spread of the paper's numbers is unknown."
  )
  header = ["variant", "n", "ours", "paper", "difference", "in standard errors"]
  return [Table(header, rows, caption)] if rows else []


def comparisons(study: Mapping[str, Any], outcomes: Outcomes) -> list[Part]:
  """Comparisons of the variants with their controls, or the claims of a paper.

  All are one family of tests.
  """
  accuracies = {name: {seed: o.accuracy for seed, o in by_seed.items()} for name, by_seed in outcomes.items()}
  if study.get("claims"):
    return _paper_claims(study["claims"], accuracies)
  controls = variant_controls(study)
  if not controls:
    return []
  if len(set(controls.values())) == 1:
    text = f"Compared with `{next(iter(controls.values()))}`, seed by seed:"
    titles = {name: name for name in controls}
  else:
    text = "Each compared with its control, seed by seed; p-values are corrected for all of them together:"
    titles = {name: f"{name} against {control}" for name, control in controls.items()}
  claims = {titles[name]: (accuracies[name], accuracies[control]) for name, control in controls.items()}
  return [text, claims_table(claims)]


def _paper_claims(
  claims: Sequence[Mapping[str, str]], accuracies: Mapping[str, statistics.SeedValues]
) -> list[Part]:
  """Comparisons that a paper makes, and the verdict of each test on the paper's claim."""
  papers = {f"{claim['variant']} against {claim['control']}": claim["paper"] for claim in claims}
  values = {
    f"{claim['variant']} against {claim['control']}": (
      accuracies[claim["variant"]],
      accuracies[claim["control"]],
    )
    for claim in claims
  }
  rows = []
  for claim in statistics.compare_all(values):
    comparison, paper = claim.paired, papers[claim.name]
    row = [claim.name, paper or "-", str(comparison.n), _format_difference(comparison)]
    row.append("-" if comparison.t_interval is None else comparison.t_interval.text())
    row += [
      f"{comparison.t_p:.3f} ({claim.t_holm:.3f})",
      f"{comparison.exact_p:.3f} ({claim.exact_holm:.3f})",
    ]
    rows.append([*row, *(_paper_verdict(v, paper) for v in (claim.t_verdict, claim.exact_verdict))])
  text = (
    "Claims of the paper, as differences in points, and ours seed by seed; p-values are corrected for all claims "
    "together. A sign without a number: the paper gives no number."
  )
  header = ["claim", "paper", "n", "ours", "t 95 %", "t p (Holm)", "exact p (Holm)", "verdict (t)"]
  return [text, Table([*header, "verdict (exact)"], rows)]


def _paper_verdict(verdict: statistics.Verdict, paper: str) -> str:
  """Returns 'confirmed' or 'contradicted' for a decided claim of a paper."""
  if verdict.decision == "undecided" or not paper:
    return str(verdict)
  return "confirmed" if (verdict.decision == "better") == paper.startswith("+") else "contradicted"


def claims_table(claims: statistics.ClaimValues) -> Table:
  """Differences of a family of claims, with intervals, p-values and verdicts of both tests."""
  rows = []
  for claim in statistics.compare_all(claims):
    comparison = claim.paired
    row = [claim.name, str(comparison.n), _format_difference(comparison)]
    intervals = comparison.bootstrap, comparison.t_interval
    row += ["-" if interval is None else interval.text() for interval in intervals]
    row += [
      f"{comparison.exact_p:.3f} ({claim.exact_holm:.3f})",
      f"{comparison.t_p:.3f} ({claim.t_holm:.3f})",
    ]
    rows.append([*row, str(claim.exact_verdict), str(claim.t_verdict)])
  header = ["", "n", "difference", "bootstrap 95 %", "t 95 %", "exact p (Holm)", "t p (Holm)"]
  return Table([*header, "verdict (exact)", "verdict (t)"], rows)


def _comparison_figures(record: StudyRecord, outcomes: Outcomes) -> Section:
  runs, network = record.runs, record.config["network"]
  finished = {name: list(by_seed.values()) for name, by_seed in outcomes.items() if by_seed}
  by_stage = study_figures.accuracy_by_stage(study_figures.ancestor_chains(runs, network))
  parts: list[Part] = [
    Figure("accuracy by stage", by_stage, BY_STAGE),
    Figure("accuracy by cost", study_figures.accuracy_by_cost(finished), BY_COST),
  ]
  if (curves := study_figures.training_curves(runs, network)) is not None:
    parts.append(Figure("along training", curves, ALONG_TRAINING))
  return Section("Comparison of the variants", parts)


def _forgetting(record: StudyRecord) -> list[Part]:
  """Kept, forgotten and gained images of the variants with several stages."""
  network, counts = record.config["network"], dict[str, list[Overlap]]()
  problems: list[str] = []
  accuracies: dict[str, list[float]] = {}
  for name, by_seed in record.runs.items():
    for seed, run in by_seed.items():
      last = stages.selected_stage(run.stages, network)
      lines = forgetting.stage_pairs(run.stages, {last["name"]})[1]
      problems += [f"- {name}:{seed}: {line[2:]}" for line in lines]
      if (since_first := forgetting.since_first_stage(run.stages, last)) is not None:
        counts.setdefault(name, []).append(since_first)
        accuracies.setdefault(name, []).append(100 * last["metrics"]["last"]["test/accuracy"])
  parts: list[Part] = ["\n".join(problems)] if problems else []
  if counts:
    bars = [CountBar(name, *np.mean(overlaps, axis=0).tolist()) for name, overlaps in counts.items()]
    parts.append(Figure("kept and forgotten", training_figures.count_bars(bars), COUNTS))
  families = study_figures.weight_families(
    {name: record.config["variants"][name] for name in counts}, network
  )
  if families:
    lines_by_family = {
      family: [_weight_point(weight, counts[name], accuracies[name]) for name, weight in weights.items()]
      for family, weights in families.items()
    }
    png = study_figures.forgetting_by_weight(lines_by_family)
    parts.append(Figure("weight of the reference", png, WEIGHTS))
  return parts


def _weight_point(weight: float, counts: Sequence[Overlap], accuracies: Sequence[float]) -> WeightPoint:
  ious = [overlap.iou for overlap in counts]
  return WeightPoint(weight, ious, [c.forgotten for c in counts], [c.gained for c in counts], accuracies)


def _provenance(record: StudyRecord) -> Section:
  """Keys, devices and software of the runs, commands and the config."""
  folder, study = record.folder, record.config
  rows = [
    _provenance_row(name, seed, run) for name, by_seed in record.runs.items() for seed, run in by_seed.items()
  ]
  header = ["variant", "seed", "keys of its stages", "devices", "jax", "revision"]
  controls = ", ".join(f"`{name}`" for name in dict.fromkeys(variant_controls(study).values())) or "none"
  first_run = next(run.run.folder for by_seed in record.runs.values() for run in by_seed.values())
  commands = (f"python -m smskd_jax.report {shlex.quote(str(path))}" for path in (folder, first_run))
  return Section(
    "Provenance",
    [
      f"Study `{folder.absolute()}`, seeds {', '.join(map(str, study['seeds']))}, control {controls}.",
      Table(header, rows, "Runs, and the keys of their stages in the store, in order."),
      "Commands that write this report again, and the full report of one run:",
      Code("\n".join(commands)),
      "Resolved study:",
      Code(json.dumps(study, indent=2), folded=True),
    ],
  )


def _provenance_row(name: str, seed: int, run: RunRecord) -> list[str]:
  result = run.run.result
  devices = result.get("devices", {})
  device = f"{devices.get('count', '?')} x {devices.get('kind', '?')}"
  keys = " ".join(stage["key"] for stage in run.stages)
  versions = result.get("versions", {})
  return [name, str(seed), keys, device, versions.get("jax") or "-", result.get("git_revision") or "-"]
