"""Makes a page of finished runs and studies: tables, figures, and where every number comes from.

  python -m smskd_jax.report runs/quickstart
  python -m smskd_jax.report runs/table3 runs/seed0 runs/seed1 --out=pages

writes report.html, one file with everything in it, and the same as report_full.md with report_figures/ beside it. Both
are made from the workdirs and their stores alone: no data set is read and nothing is trained.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from smskd_jax import cli

if TYPE_CHECKING:
  from smskd_jax.analysis.page import Part, Section
  from smskd_jax.analysis.records import Record
  from smskd_jax.analysis.study_records import StudyRecord


def main(arguments: Sequence[str] | None = None) -> int:
  """Makes the page that the command line asks for; returns the exit status."""
  parser = cli.make_parser("report", __doc__)
  parser.add_argument("workdir", nargs="+", type=Path, help="the folder of a finished run, or of a study")
  parser.add_argument("--out", type=Path, help="the folder to write to; default: the first workdir")
  parser.add_argument(
    "--embedding", choices=("pca", "tsne"), default="pca", help="how the pictures of embeddings are made"
  )
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  written = run(flags.workdir, flags.out or flags.workdir[0], flags.embedding)
  return "\n".join(f"wrote {path}" for path in written)


def run(folders: Sequence[Path], out: Path, embedding: str = "pca") -> tuple[Path, Path]:
  """Writes the page of some runs and studies into a folder; returns the paths of the HTML and of the Markdown.

  Args:
    folders: of the runs and studies.
    out: where the page is written to.
    embedding: how embeddings of runs are drawn, a name of `analysis.fidelity.EMBEDDINGS`.

  Raises:
    UserError: a folder is neither a run nor a study, nothing in it is finished, or `out` cannot be written to.
  """
  from smskd_jax.analysis import page, pooled, records, study_records
  from smskd_jax.runtime import workdir as workdir_lib

  read = lambda folder: (study_records if study_records.is_study(folder) else records).read("WORKDIR", folder)
  found = [read(folder) for folder in folders]
  workdir_lib.check_writable("--out", out)
  for line in dict.fromkeys(line for one in found for line in one.left_out):
    print(f"warning: {line}", file=sys.stderr)
  runs = [one for one in found if isinstance(one, records.Record)]
  chapters = [
    _of_run(one, runs, embedding) if isinstance(one, records.Record) else _of_study(one) for one in found
  ]
  if len(chapters) == 1:
    return page.write(chapters[0], out)
  tables = [pooled.overview(runs), pooled.over_seeds(runs)] if runs else []
  parts: list[page.Part] = [*(table for table in tables if table is not None), *chapters]
  return page.write(page.Section(f"{len(chapters)} runs and studies", parts), out)


def _left_out(record: "Record | StudyRecord") -> "list[Part]":
  """A paragraph on the files that are missing or damaged, if there are any."""
  return ["\n".join(f"- {line}" for line in record.left_out)] if record.left_out else []


def _of_run(record: "Record", runs: Sequence["Record"], embedding: str) -> "Section":
  from smskd_jax.analysis import pooled, run_page, statistics
  from smskd_jax.analysis.page import Section

  chapters = [*_left_out(record), *run_page.sections(record, embedding=embedding)]
  if pooled.single(record, runs):
    warning = f"**{statistics.SINGLE_SEED}**"
    return Section(f"{record.title} ({pooled.ONE_SEED})", [warning, *chapters])
  return Section(record.title, chapters)


def _of_study(record: "StudyRecord") -> "Section":
  from smskd_jax.analysis import pooled, study_page
  from smskd_jax.analysis.page import Section, parts_of
  from smskd_jax.analysis.variants import Cost
  from smskd_jax.studies import report

  outcomes = report.outcomes(record.folder, record.study)
  costs = {
    name: {seed: Cost(of.accuracy, of.images, of.frozen) for seed, of in seeds.items()}
    for name, seeds in outcomes.items()
  }
  title = f"{record.folder.absolute().name}: a study of {len(record.found)} variants"
  if record.seeds == 1:
    title += f" ({pooled.ONE_SEED})"
  told = parts_of(report.text(title, record.study, outcomes, record.failures))
  return Section(title, [*_left_out(record), *study_page.sections(record, costs, told)])


if __name__ == "__main__":
  sys.exit(main())
