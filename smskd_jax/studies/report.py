"""Summary of a study in its folder: report.md, and result.json of all runs."""

from collections.abc import Mapping
from pathlib import Path

from smskd_jax.analysis import document, records, study_report
from smskd_jax.runtime import store
from smskd_jax.runtime.integrity import read_json


def write(workdir: Path, failures: Mapping[str, str]) -> Path:
  """Writes WORKDIR/report.md and WORKDIR/result.json for the finished runs.

  Returns the path of the report.
  """
  study = read_json(workdir / records.STUDY_FILE)["study"]
  outcomes = records.read_outcomes(workdir, study)
  variants = {
    name: {seed: outcome._asdict() for seed, outcome in by_seed.items()} for name, by_seed in outcomes.items()
  }
  store.write_json_with_checksum(workdir / "result.json", {"variants": variants, "failures": dict(failures)})
  path = workdir / "report.md"
  path.write_text(document.render_markdown(study_report.summary(workdir.name, study, outcomes, failures)))
  return path
