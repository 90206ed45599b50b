"""Compares two runs or two studies: differences of their configs, costs and results.

  python -m smskd_jax.compare runs/one runs/other
  python -m smskd_jax.compare runs/table3 runs/table3_other_weights

prints Markdown. Runs are compared by stages of the same name; one pair of runs decides nothing. Studies are compared by
variants of the same name, over the seeds that both have.
"""

from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli
from smskd_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the comparison that the command line describes; returns the exit status."""
  parser = cli.make_parser("compare", __doc__)
  parser.add_argument("one", type=Path, help="folder of a finished run (A), or of a study")
  parser.add_argument("other", type=Path, help="folder of the same kind (B); differences are B minus A")
  return cli.run(parser, arguments, lambda flags: run(flags.one, flags.other).removesuffix("\n"))


def run(one: Path, other: Path) -> str:
  """Returns the comparison of two runs or two studies as Markdown.

  Raises:
    UserError: a folder is neither a run nor a study, the folders are one of each, or nothing in them is finished.
  """
  from smskd_jax.analysis import comparison, document, records  # late: --help imports no SciPy

  folders = {"A": one, "B": other}
  are_studies = {name: records.is_study(folder) for name, folder in folders.items()}
  if are_studies["A"] != are_studies["B"]:
    run_name, study_name = sorted(folders, key=lambda name: are_studies[name])
    raise UserError(
      f"{study_name}: {folders[study_name]} is a study and {folders[run_name]} is not; compare two runs, or two studies"
    )
  if are_studies["A"]:
    section = comparison.compare_studies(
      *(records.read_study(name, folder) for name, folder in folders.items())
    )
  else:
    section = comparison.compare_runs(*(records.read_run(name, folder) for name, folder in folders.items()))
  return document.render_markdown(section)


if __name__ == "__main__":
  sys.exit(main())
