"""The report of a study, from its folder alone: every variant, and its differences from the control."""

from collections.abc import Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.analysis import forgetting, records, statistics, study_records
from smskd_jax.analysis.report import markdown_table
from smskd_jax.runtime import store
from smskd_jax.runtime import workdir as workdir_lib
from smskd_jax.runtime.integrity import DamagedFileError, read_json


class Outcome(NamedTuple):
  """What a run of a variant left."""

  accuracy: float  # on the test set, percent
  oracle: float  # of the best epoch by the test set
  agreement: float | None  # with its teachers, percent
  forgotten: float | None  # test images that its first stage got right and its last gets wrong
  images: int  # forward and backward, of all stages of the network
  frozen: int  # forward passes of teachers and references
  seconds: float
  iou: float | None = None  # of the sets of test images that its first and its last stage get right


def outcomes(workdir: Path, study: Mapping[str, Any]) -> dict[str, dict[int, Outcome]]:
  """Outcomes of the finished runs by variant and seed; runs with a damaged result.json are left out."""
  found: dict[str, dict[int, Outcome]] = {name: {} for name in study["variants"]}
  for name, of_seeds in found.items():
    for seed in study["seeds"]:
      path = workdir / name / f"seed{seed}" / "result.json"
      with contextlib.suppress(DamagedFileError):
        of_seeds[seed] = _outcome(workdir_lib.read_result(path.parent), study["network"])
  return found


def _outcome(result: Mapping[str, Any], network: str) -> Outcome:
  chosen = records.chosen(result["stages"], network)
  trained = [stage for stage in result["stages"] if stage["network"] == network]
  last = chosen["metrics"]["last"]
  since_first = forgetting.since_first(result["stages"], chosen)
  return Outcome(
    accuracy=100 * last["test/accuracy"],
    oracle=100 * chosen["metrics"]["oracle"]["test/accuracy"],
    agreement=100 * last["test/teacher_agreement"] if "test/teacher_agreement" in last else None,
    forgotten=since_first and since_first.forgotten,
    images=sum(stage["backward_passes"] for stage in trained),
    frozen=sum(stage["forward_passes"][who] for stage in trained for who in ("teachers", "reference")),
    seconds=sum(stage["seconds"] for stage in trained),
    iou=since_first and since_first.iou,
  )


def write(workdir: Path, failures: Mapping[str, str]) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/result.json of what is finished; returns the report's path."""
  study = read_json(workdir / "study.json")["study"]
  found = outcomes(workdir, study)
  numbers = {name: {seed: of._asdict() for seed, of in seeds.items()} for name, seeds in found.items()}
  store.write_json_with_checksum(workdir / "result.json", {"variants": numbers, "failures": dict(failures)})
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
    "seeds; `oracle` is the best epoch by the test set, which selects nothing else. IoU is of the sets of test images "
    "that are classified correctly at the end of the first and of the last stage, |A and B| / |A or B|; forgotten are "
    "the images that only the first stage has right."
  )
  parts.append(_variants_table(study, found))
  parts += [f"- {note}" for note in study.get("notes", ())]
  parts += _claims(study, found)
  if failures:
    parts.append("\n".join(f"- failed: {unit}: {error}" for unit, error in failures.items()))
  return "\n\n".join(parts) + "\n"


def _variants_table(study: Mapping[str, Any], found: Mapping[str, Mapping[int, Outcome]]) -> str:
  header = ["variant", "n", "test", "oracle", "agrees with teacher", "IoU with stage 1", "forgotten"]
  header += ["forward and backward", "frozen forward", "hours"]
  published = study["published"]
  if published:
    header += ["paper", "ours - paper (t 95 %)"]
  rows = []
  for name, seeds in found.items():
    of = list(seeds.values())
    spread = lambda field, decimals=2, of=of: statistics.summary(
      [v for v in (getattr(one, field) for one in of) if v is not None]
    ).text(decimals)
    row = [name, str(len(of)), *map(spread, ("accuracy", "oracle", "agreement"))]
    row += [spread("iou", 4), spread("forgotten", 1)]
    row += [f"{_mean(of, field):,.0f}" if of else "-" for field in ("images", "frozen")]
    row.append(f"{sum(one.seconds for one in of) / 3600:.2f}")
    if published:
      row += _beside_paper([one.accuracy for one in of], published.get(name))
    rows.append(row)
  for name, accuracy in study.get("quoted", {}).items():
    rows.append([name, "0", *["-"] * (len(header) - 4), f"{accuracy:.2f}", "-"])
  return markdown_table(header, rows)


def _beside_paper(accuracies: Sequence[float], paper: float | None) -> list[str]:
  """The paper's number, and ours less the paper's with the interval of our mean; the paper's spread is not known."""
  if paper is None:
    return ["-", "-"]
  of = statistics.paired(dict(enumerate(accuracies)), dict.fromkeys(range(len(accuracies)), paper))
  difference = "-" if of.mean is None else f"{of.mean:+.2f}"
  return [f"{paper:.2f}", difference + ("" if of.t_interval is None else f" ({of.t_interval.text()})")]


def _mean(of: Sequence[Outcome], field: str) -> float:
  """Over seeds; what one has computed for all, as teachers' answers that are kept, counts there."""
  return sum(getattr(one, field) for one in of) / len(of)


def _claims(study: Mapping[str, Any], found: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
  """Every variant against its control, or the claims of a paper. The comparisons of a study are one family."""
  if study.get("claims"):
    return _paper_claims(study, found)
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


def _paper_claims(study: Mapping[str, Any], found: Mapping[str, Mapping[int, Outcome]]) -> list[str]:
  """The comparisons that a paper makes, and for each test whether it confirms what the paper says of them."""
  accuracies = {name: {seed: of.accuracy for seed, of in seeds.items()} for name, seeds in found.items()}
  named = {f"{one['variant']} against {one['control']}": one for one in study["claims"]}
  sides = {name: (accuracies[one["variant"]], accuracies[one["control"]]) for name, one in named.items()}
  header = ["claim", "paper", "n", "ours", "t 95 %", "t p (Holm)", "exact p (Holm)", "verdict (t)"]
  header.append("verdict (exact)")
  rows = []
  both = zip(statistics.family(sides, test="t"), statistics.family(sides, test="exact"), strict=True)
  for by_t, by_exact in both:
    of, paper = by_t.paired, named[by_t.name]["paper"]
    row = [by_t.name, paper or "-", str(of.n), "-" if of.mean is None else f"{of.mean:+.2f}"]
    row.append("-" if of.t_interval is None else of.t_interval.text())
    row += [f"{of.t_p:.3f} ({by_t.t_holm:.3f})", f"{of.exact_p:.3f} ({by_t.exact_holm:.3f})"]
    rows.append([*row, *(_on_claim(claim.verdict, paper) for claim in (by_t, by_exact))])
  words = (
    "The paper's claims, as differences in points, and ours seed by seed; p-values are corrected for all of them "
    "together. A sign alone: the paper gives no number."
  )
  return [words, markdown_table(header, rows)]


def _on_claim(verdict: statistics.Verdict, paper: str) -> str:
  """Verdict on a paper's claim: confirmed or contradicted once the comparison is decided."""
  if verdict.decision == "undecided" or not paper:
    return str(verdict)
  return "confirmed" if (verdict.decision == "better") == paper.startswith("+") else "contradicted"


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
