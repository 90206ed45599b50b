"""Writes a report of finished runs and studies: tables, figures and sources.

  python -m smskd_jax.report runs/quickstart
  python -m smskd_jax.report runs/table3 runs/seed0 runs/seed1 --out=reports

writes report.html, one self-contained file, and report_full.md with the same content and its figures in
report_figures/. Reads only the workdirs and their stores: no data set is loaded and nothing is trained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli


def main(arguments: Sequence[str] | None = None) -> int:
  """Writes the report that the command line describes; returns the exit status."""
  parser = cli.make_parser("report", __doc__)
  parser.add_argument("workdir", nargs="+", type=Path, help="folder of a finished run or of a study")
  parser.add_argument("--out", type=Path, help="folder to write to (default: the first workdir)")
  parser.add_argument(
    "--embedding", choices=("pca", "tsne"), default="pca", help="projection of embeddings (default: pca)"
  )
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  paths = run(flags.workdir, flags.out or flags.workdir[0], flags.embedding)
  return "\n".join(f"wrote {path}" for path in paths)


def run(folders: Sequence[Path], out: Path, embedding: str = "pca") -> tuple[Path, Path]:
  """Writes the report of runs and studies; returns the paths of the HTML and of the Markdown.

  Args:
    folders: workdirs of the runs and studies.
    out: folder to write to.
    embedding: projection of the embeddings of runs, a name of `analysis.fidelity.EMBEDDINGS`.

  Raises:
    UserError: a folder is neither a run nor a study, nothing in a folder is finished, or `out` is not writable.
  """
  from smskd_jax.analysis import document, records, run_report, study_report  # late: --help imports no SciPy
  from smskd_jax.runtime import workdir

  all_records = [records.read("WORKDIR", folder) for folder in folders]
  workdir.check_writable("--out", out)
  for line in dict.fromkeys(line for record in all_records for line in record.warnings):
    print(f"warning: {line}", file=sys.stderr)
  runs = [record for record in all_records if isinstance(record, records.RunRecord)]
  sections = [
    run_report.full_report(record, runs, embedding)
    if isinstance(record, records.RunRecord)
    else study_report.full_report(record)
    for record in all_records
  ]
  report = sections[0]
  if len(sections) > 1:
    parts = [*run_report.comparison_tables(runs), *sections]
    report = document.Section(f"{len(sections)} runs and studies", parts)
  html, markdown = out / "report.html", out / "report_full.md"
  document.write_html(report, html)
  document.write_markdown(report, markdown, "report_figures")
  return html, markdown


if __name__ == "__main__":
  sys.exit(main())
