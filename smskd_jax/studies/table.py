"""The report of a study, from its folder alone: every variant, and its differences from the control."""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.analysis import records, statistics, study_records
from smskd_jax.analysis.report import markdown_table


class Outcome(NamedTuple):
  """What a run of a variant left."""

  accuracy: float  # on the test set, percent
  oracle: float  # of the best epoch by the test set
  agreement: float | None  # with its teachers, percent
  forgotten: float | None  # of what its first stage got right, percent of the test set
  images: int  # forward and backward, of all stages of the network
  frozen: int  # forward passes of teachers and references
  seconds: float


def outcomes(workdir: Path, study: Mapping[str, Any]) -> dict[str, dict[int, Outcome]]:
  """What is finished, by variant and seed."""
  found: dict[str, dict[int, Outcome]] = {name: {} for name in study["variants"]}
  for name, of_seeds in found.items():
    for seed in study["seeds"]:
      path = workdir / name / f"seed{seed}" / "result.json"
      if path.exists():
        of_seeds[seed] = _outcome(json.loads(path.read_text()), study["network"])
  return found


def _outcome(result: Mapping[str, Any], network: str) -> Outcome:
  chosen = records.chosen(result["stages"], network)
  trained = [stage for stage in result["stages"] if stage["network"] == network]
  last = chosen["metrics"]["last"]
  percent = lambda name: 100 * last[name] if name in last else None
  return Outcome(
    accuracy=100 * last["test/accuracy"],
    oracle=100 * chosen["metrics"]["oracle"]["test/accuracy"],
    agreement=percent("test/teacher_agreement"),
    forgotten=percent("test/earlier_1_lost"),
    images=sum(stage["backward_passes"] for stage in trained),
    frozen=sum(stage["forward_passes"][who] for stage in trained for who in ("teachers", "reference")),
    seconds=sum(stage["seconds"] for stage in trained),
  )


def write(workdir: Path, failures: Mapping[str, str]) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/result.json of what is finished; returns the report's path."""
  study = json.loads((workdir / "study.json").read_text())["study"]
  found = outcomes(workdir, study)
  numbers = {name: {seed: of._asdict() for seed, of in seeds.items()} for name, seeds in found.items()}
  (workdir / "result.json").write_text(
    json.dumps({"variants": numbers, "failures": dict(failures)}, indent=2) + "\n"
  )
  path = workdir / "report.md"
  path.write_text(text(workdir.name, study, found, failures))
  return path


def text(
  title: str,
  study: Mapping[str, Any],
  found: Mapping[str, Mapping[int, Outcome]],
  failures: Mapping[str, str],
) -> str:
  """The report as Markdown."""
  most = max(map(len, found.values()))
  parts = [f"# {title}"]
  if most == 1:
    parts.append(f"**{statistics.SINGLE_SEED}**")
  parts.append(
    f"Test accuracy in percent of `{study['network']}` at the end of its last stage, mean ± standard deviation over n "
    "seeds; `oracle` is the best epoch by the test set, which selects nothing else."
  )
  parts.append(_variants_table(study, found))
  parts += _claims(study, found)
  if failures:
    parts.append("\n".join(f"- failed: {unit}: {error}" for unit, error in failures.items()))
  return "\n\n".join(parts) + "\n"


def _variants_table(study: Mapping[str, Any], found: Mapping[str, Mapping[int, Outcome]]) -> str:
  header = ["variant", "n", "test", "oracle", "agrees with teacher", "forgotten of stage 1"]
  header += ["forward and backward", "frozen forward", "hours"]
  published = study["published"]
  if published:
    header.append("a paper's")
  rows = []
  for name, seeds in found.items():
    of = list(seeds.values())
    spread = lambda field, of=of: statistics.summary(
      [v for v in (getattr(one, field) for one in of) if v is not None]
    ).text()
    row = [name, str(len(of)), *map(spread, ("accuracy", "oracle", "agreement", "forgotten"))]
    row += [f"{_mean(of, field):,.0f}" if of else "-" for field in ("images", "frozen")]
    row.append(f"{sum(one.seconds for one in of) / 3600:.2f}")
    if published:
      row.append(f"{published[name]:.2f}" if name in published else "-")
    rows.append(row)
  return markdown_table(header, rows)


def _mean(of: Sequence[Outcome], field: str) -> float:
  """Over seeds; what one has computed for all, as teachers' answers that are kept, counts there."""
  return sum(getattr(one, field) for one in of) / len(of)


def _claims(study: Mapping[str, Any], found: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
  """Every variant against its control. Whatever they are compared with, the claims of a study are one family."""
  controls = study_records.compared(study)
  if not controls:
    return []
  accuracies = {name: {seed: of.accuracy for seed, of in seeds.items()} for name, seeds in found.items()}
  if len(set(controls.values())) == 1:
    words = f"Compared with `{next(iter(controls.values()))}`, seed by seed:"
    named = {name: name for name in controls}
  else:
    words = "Each compared with its control, seed by seed; p-values are corrected for all of them together:"
    named = {name: f"{name} against {control}" for name, control in controls.items()}
  claims = {named[name]: (accuracies[name], accuracies[control]) for name, control in controls.items()}
  return [words, claims_table(claims)]


def claims_table(claims: statistics.Sides) -> str:
  """The differences of each claim, both tests, and the verdict of each."""
  header = ["", "n", "difference", "bootstrap 95 %", "t 95 %", "exact p (Holm)", "t p (Holm)"]
  header += ["verdict (exact)", "verdict (t)"]
  rows = []
  interval = lambda found: "-" if found is None else found.text()
  both = zip(statistics.family(claims, test="exact"), statistics.family(claims, test="t"), strict=True)
  for claim, by_t in both:
    of = claim.paired
    row = [claim.name, str(of.n), "-" if of.mean is None else f"{of.mean:+.2f}"]
    row += [interval(of.bootstrap), interval(of.t_interval)]
    row += [f"{of.exact_p:.3f} ({claim.exact_holm:.3f})", f"{of.t_p:.3f} ({claim.t_holm:.3f})"]
    rows.append([*row, str(claim.verdict), str(by_t.verdict)])
  return markdown_table(header, rows)
