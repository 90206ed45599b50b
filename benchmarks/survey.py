"""Table 3 of the KD survey at a reduced budget: every mode of configs/survey.py with several seeds.

  python benchmarks/survey.py --workdir=runs/survey --jobs=2 --out=benchmarks/results/survey

Teachers learn from all images, once; students learn from a part of them, in each mode with each seed. With one seed,
all students start from the same variables and process the same images in the same order, except in modes of several
stages: modes are compared by their differences seed by seed. The same command resumes an interrupted benchmark. A mode
that fails is reported and does not stop the others. The table is written after every run.

--jobs is the number of simultaneous runs, each on cores of its own.
"""

import argparse
import json
from pathlib import Path
import sys
from typing import NamedTuple

from smskd_jax.analysis import stages, statistics
from smskd_jax.analysis.document import Table, markdown_table
from smskd_jax.runtime.signals import Interrupted
from smskd_jax.runtime.store import write_json
from smskd_jax.studies import subprocess_pool

ROOT = Path(__file__).resolve().parents[1]
TEACHER, SECOND_TEACHER, STUDENT = "survey_resnet26", "survey_resnet20", "survey_resnet8"


class Row(NamedTuple):
  """Row of the table."""

  name: str
  mode: str
  survey: float | None  # test accuracy in percent in the survey's Table 3; None: not in the table
  arguments: str = ""  # of configs/survey.py


# In the order of the survey's table, followed by modes of its code and further variants. `kdparam` has fewer parameters
# than in the survey, and `allkd` and `mkd` have teachers that a CPU can train.
ROWS = (
  Row("TAKD", "takd", 90.57),
  Row("UDA", "uda", 90.52),
  Row("MKD", "mkd", 90.34),
  Row("KD", "kd", 90.33),
  Row("RKD", "rkd", 90.22),
  Row("NOKD", "nokd", 89.42),
  Row("SFD", "sfd", 87.47),
  Row("OH", "oh", 87.09),
  Row("STL", "stl", None, "unlabeled=fashion_mnist_small"),
  Row("UDA-NOKD", "uda_nokd", None),
  Row("all KD", "allkd", None),
  Row("KD, tuned", "kdparam", None, "temperatures=2+5,weights=0.5+0.9"),
  Row("triplet", "triplet", None),
  Row("AB", "ab", None),
  Row("PKD", "pkd", None),
  Row("blind", "blind", None),
  Row("RKD and attention", "rkd", None, "attention=True"),
  Row("SFD, mean", "sfd", None, "reduction=mean"),
  Row("OH, running statistics", "oh", None, "teacher_statistics=running"),
  Row("MKD by TCP", "mkd", None, "weighting=tcp"),
)


class Run(NamedTuple):
  """One call of the main program."""

  name: str
  arguments: str
  workdir: Path


def common(args):
  """Arguments of all networks."""
  return f"dataset={args.dataset},folder={args.folder},image_size={args.image_size},padding={args.padding}"


def teacher_runs(args):
  """Runs of the teachers: labels only, on all images."""
  return [
    Run(
      name,
      f"mode=nokd,student={name},epochs={args.teacher_epochs},{common(args)}",
      args.workdir / "teachers" / name,
    )
    for name in (TEACHER, SECOND_TEACHER)
  ]


def student_runs(args):
  """Runs of every mode with the first seed, then with the next ones."""
  folders = "+".join(str(run.workdir) for run in teacher_runs(args))
  budget = (
    f"epochs={args.epochs},pretrain_epochs={args.epochs},ab_epochs={args.ab_epochs},max_images={args.images}"
  )
  models = f"teacher={TEACHER},teachers={SECOND_TEACHER},assistants={SECOND_TEACHER},student={STUDENT}"
  teachers = f"teacher_variables={folders}"
  runs = []
  for seed in args.seeds:
    for row in selected_rows(args):
      parts = [f"mode={row.mode}", f"seed={seed}", common(args), budget, models, teachers, row.arguments]
      runs.append(
        Run(f"{row.name}, seed {seed}", ",".join(filter(None, parts)), run_workdir(args, row, seed))
      )
  return runs


def run_workdir(args, row, seed):
  """Workdir of a row with a seed."""
  return args.workdir / row.name.lower().replace(", ", "_").replace(" ", "_") / f"seed{seed}"


def selected_rows(args):
  """Rows whose mode is in --unit; all by default."""
  return [row for row in ROWS if not args.unit or row.mode in args.unit.split(",")]


def command(run, every_epochs):
  """Command line of a run."""
  config = f"--config={ROOT / 'configs' / 'survey.py'}:{run.arguments}"
  flags = [f"--workdir={run.workdir}", f"--config.evaluate.every_epochs={every_epochs}"]
  return [sys.executable, "-m", "smskd_jax.main", config, *flags]


def run_all(runs, args, after):
  """Trains the unfinished runs in a pool; calls `after(failures)` after each. Returns error messages by run."""
  waiting = {run.name: run for run in runs if not (run.workdir / "result.json").exists()}

  def run_command(name):
    return command(waiting[name], args.evaluate_every_epochs)

  def log_path(name):
    return waiting[name].workdir / "log.txt"

  failures: dict[str, str] = {}
  for name, error in subprocess_pool.run_pool(list(waiting), run_command, log_path, args.jobs):
    if error:
      failures[name] = error
    after(failures)
  return failures


def outcome(row, workdir):
  """Test accuracies of a finished run's student in percent, its cost and its revision."""
  result = json.loads((workdir / "result.json").read_text())
  student = stages.selected_stage(result["stages"], "student")
  metrics = student["metrics"]
  return {
    "stage": student["name"],
    "last": 100 * metrics["last"]["test/accuracy"],
    "oracle": 100 * metrics["oracle"]["test/accuracy"],
    "images_seen": sum(stage["backward_passes"] for stage in result["stages"]),
    "hours": sum(stage["seconds"] for stage in result["stages"]) / 3600,
    "revision": result["git_revision"],
    "versions": result["versions"],
  }


def collect(args, failures):
  """Settings and results of all finished runs."""
  teachers = {
    run.name: outcome(Row(run.name, "nokd", None), run.workdir)
    for run in teacher_runs(args)
    if (run.workdir / "result.json").exists()
  }
  rows = []
  for row in selected_rows(args):
    seeds = {
      seed: outcome(row, run_workdir(args, row, seed))
      for seed in args.seeds
      if (run_workdir(args, row, seed) / "result.json").exists()
    }
    rows.append({**row._asdict(), "seeds": seeds})
  settings = {n: v for n, v in vars(args).items() if n not in ("workdir", "out", "jobs", "folder", "unit")}
  return {"settings": settings, "teachers": teachers, "rows": rows, "failures": failures}


def claim_families(rows):
  """Comparisons for the survey's findings; in each family the probability of any false claim is at most 5 %.

  Verdicts are those of the t-test: the exact test cannot decide with a few seeds.
  """
  last = {row["name"]: {seed: one["last"] for seed, one in row["seeds"].items()} for row in rows}
  if not {"UDA", "NOKD"} <= set(last):
    return {}

  def compare(name, others):
    return {other: (last[name], last[other]) for other in others if other in last}

  better = [name for name in ("KD", "UDA-NOKD", "UDA", "TAKD", "MKD") if name in last]
  families = {
    "KD with augmentation (UDA) is better than": compare(
      "UDA", [n for n in last if n not in ("UDA", "NOKD")]
    ),
    "no teacher (NOKD) is better than": compare("NOKD", ("SFD", "OH")),
    "better than no teacher (NOKD)": {name: (last[name], last["NOKD"]) for name in better},
  }
  return {name: statistics.compare_all(family) for name, family in families.items()}


def as_markdown(table):
  """Report of the table and the comparisons as Markdown."""
  header = ["mode", "n", "last epoch", "best by test (oracle)", "the survey's", "images", "hours"]
  parts = [_heading(table), markdown_table(Table(header, [_row(row) for row in table["rows"]]))]
  if max((len(row["seeds"]) for row in table["rows"]), default=0) == 1:
    parts.insert(1, f"**{statistics.SINGLE_SEED}**")
  columns = ["n", "difference", "95 % interval (t)", "p (t)", "p (exact)", "Holm (t)", "Holm (exact)"]
  families = claim_families(table["rows"])
  if families:
    parts.append(_legend(families))
  for name, family in families.items():
    header = [name, *columns, "verdict (t)"]
    parts.append(markdown_table(Table(header, [_cells(claim) for claim in family])))
  return "\n\n".join(parts) + "\n"


def _heading(table):
  """Command, data, budget and hours."""
  settings, rows = table["settings"], table["rows"]
  flags = " ".join(
    f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
    for name, value in settings.items()
  )
  hours = sum(one["hours"] for row in rows for one in row["seeds"].values())
  teachers = ", ".join(f"{name} {one['last']:.2f} %" for name, one in table["teachers"].items())
  revisions = sorted({str(one["revision"])[:7] for row in rows for one in row["seeds"].values()})
  command = f"python benchmarks/survey.py --workdir=WORKDIR --out=OUT {flags}"
  size = f"{settings['image_size']}x{settings['image_size']}"
  return (
    f"# Modes of the KD survey at the budget of a CPU\n\n```\n{command}\n```\n\n"
    f"Test accuracy in percent on {settings['dataset']} at {size} pixels, mean and standard deviation over seeds: "
    f"students learn from {settings['images']:,} images for {settings['epochs']} epochs, their teachers ({teachers}) "
    f"from all for {settings['teacher_epochs']}. The survey's numbers are for 50,000 images of 32x32 pixels and 200 "
    f"epochs. {hours:.1f} hours of training in all, on a shared machine; revision {', '.join(revisions)}."
  )


def _legend(families):
  most = max((claim.paired.n for family in families.values() for claim in family), default=0)
  return (
    "Differences seed by seed, in percentage points. `t` is Student's paired t-test, which assumes normal "
    f"differences; `exact` is the sign-flip test, with p of at least {statistics.min_exact_p(most):.3g} at n = {most}. "
    "Intervals and p are of single claims; `Holm` is p adjusted over the claims of a table. Verdicts are by "
    "`Holm (t)` at 5 %."
  )


def _row(row):
  results = list(row["seeds"].values())
  last, oracle = (statistics.summary([one[name] for one in results]).text() for name in ("last", "oracle"))
  survey = "-" if row["survey"] is None else f"{row['survey']:.2f}"
  images = f"{results[0]['images_seen']:,}" if results else "-"
  hours = f"{sum(one['hours'] for one in results):.2f}"
  return [row["name"], str(len(results)), last, oracle, survey, images, hours]


def _cells(claim):
  paired = claim.paired
  mean = "-" if paired.mean is None else f"{paired.mean:+.2f}"
  interval = "-" if paired.t_interval is None else paired.t_interval.text()
  p_values = (paired.t_p, paired.exact_p, claim.t_holm, claim.exact_holm)
  p_cells = [_format_p(value) if paired.n > 1 else "-" for value in p_values]
  return [claim.name, str(paired.n), mean, interval, *p_cells, str(claim.t_verdict)]


def _format_p(value):
  return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def parse_seeds(text):
  return [int(seed) for seed in text.split(",")]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", default="cifar10", help="source of the data")
  parser.add_argument("--folder", default="", help="folder of the data")
  parser.add_argument("--image_size", type=int, default=16)
  parser.add_argument("--padding", type=int, default=2)
  parser.add_argument("--images", type=int, default=5000, help="training images of the students")
  parser.add_argument("--epochs", type=int, default=8, help="epochs of the students")
  parser.add_argument("--ab_epochs", type=int, default=2)
  parser.add_argument("--teacher_epochs", type=int, default=8)
  parser.add_argument("--evaluate_every_epochs", type=int, default=2)
  parser.add_argument("--seeds", type=parse_seeds, default=[0, 1, 2], help="joined by commas")
  parser.add_argument("--unit", default="", help="modes, joined by commas; default: all")
  parser.add_argument("--jobs", type=int, default=1)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--out", type=Path, required=True, help="OUT.json and OUT.md are written")
  args = parser.parse_args()
  args.workdir, args.out = args.workdir.absolute(), args.out.absolute()

  def write(failures):
    table = collect(args, failures)
    write_json(args.out.with_suffix(".json"), table)
    args.out.with_suffix(".md").write_text(as_markdown(table))

  try:
    failures = run_all(teacher_runs(args), args, lambda failures: None)
    if not failures:
      failures = run_all(student_runs(args), args, write)
  except Interrupted as stop:
    sys.exit(f"{stop}; the same command continues from there")
  write(failures)
  if failures:
    sys.exit("\n".join(f"{name}: {error}" for name, error in failures.items()))


if __name__ == "__main__":
  main()
