"""Compares two runs, or two studies: what differs in their configs, in what they cost and in what they reached.

  python -m smskd_jax.compare runs/one runs/other
  python -m smskd_jax.compare runs/table3 runs/table3_of_other_weights

prints Markdown. Runs are compared stage by stage, by their names; one pair of runs decides nothing. Studies are
compared variant by variant, over the seeds that both have.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli
from smskd_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the comparison that the command line asks for; returns the exit status."""
  parser = cli.make_parser("compare", __doc__)
  parser.add_argument("one", type=Path, help="the folder of a finished run, or of a study")
  parser.add_argument(
    "other", type=Path, help="a folder of the same kind; differences are this one less the first"
  )
  return cli.run(parser, arguments, lambda flags: run(flags.one, flags.other).removesuffix("\n"))


def run(one: Path, other: Path) -> str:
  """The comparison of two runs or two studies, as Markdown.

  Raises:
    UserError: a folder is neither a run nor a study, they are one of each, or nothing in them is finished.
  """
  from smskd_jax.analysis import comparison, page, records, study_records  # --help need not wait for them
  from smskd_jax.studies import report

  folders = {"A": one, "B": other}
  studies = {name: study_records.is_study(folder) for name, folder in folders.items()}
  if studies["A"] != studies["B"]:
    no, yes = sorted(folders, key=lambda name: studies[name])
    raise UserError(
      f"{yes}: {folders[yes]} is a study and {folders[no]} is not; compare two runs, or two studies"
    )
  if not studies["A"]:
    a, b = (records.read(name, folder) for name, folder in folders.items())
    return page.markdown(comparison.of_runs(a, b))
  found = [study_records.read(name, folder) for name, folder in folders.items()]
  outcomes = [report.outcomes(study.folder, study.study) for study in found]
  claims = lambda sides: page.parts_of(report.claims_table(sides))
  return page.markdown(comparison.of_studies(found, outcomes, claims))


if __name__ == "__main__":
  sys.exit(main())
