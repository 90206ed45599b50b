"""The survey's Table 3 at a reduced budget: every mode of configs/survey.py, several seeds, one command.

  python benchmarks/survey.py --workdir=runs/survey --jobs=2 --out=benchmarks/results/survey

Teachers learn from all images, once; students from a part of them, in each mode with each seed. Every student of a
seed starts from the same variables and sees the same images in the same order, but for the modes of several stages:
modes are compared by their differences seed by seed. What is finished is not trained again, what was interrupted goes
on, and a mode that fails is reported and does not stop the others. The table is written anew after every run.

--jobs runs so many at once, each on its share of the cores.
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
  """A line of the table."""

  name: str
  mode: str
  survey: float | None  # test accuracy in the survey's Table 3, percent; None: it has none
  arguments: str = ""  # of configs/survey.py


# In the order of the survey's table; behind it what only its code has, and our variants. The parameters of `kdparam`
# are fewer than the survey's, and the teachers of `allkd` and `mkd` are those that a CPU can train.
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
  """What all networks share."""
  return f"dataset={args.dataset},folder={args.folder},image_size={args.image_size},padding={args.padding}"


def teacher_runs(args):
  """The teachers: labels alone, on all images."""
  return [
    Run(
      name,
      f"mode=nokd,student={name},epochs={args.teacher_epochs},{common(args)}",
      args.workdir / "teachers" / name,
    )
    for name in (TEACHER, SECOND_TEACHER)
  ]


def student_runs(args):
  """Every mode with the first seed, then with the next."""
  folders = "+".join(str(run.workdir) for run in teacher_runs(args))
  budget = (
    f"epochs={args.epochs},pretrain_epochs={args.epochs},ab_epochs={args.ab_epochs},max_images={args.images}"
  )
  fixed = f"teacher={TEACHER},teachers={SECOND_TEACHER},assistants={SECOND_TEACHER},student={STUDENT}"
  taught_by = f"teacher_variables={folders}"
  runs = []
  for seed in args.seeds:
    for row in selected_rows(args):
      parts = [f"mode={row.mode}", f"seed={seed}", common(args), budget, fixed, taught_by, row.arguments]
      runs.append(
        Run(f"{row.name}, seed {seed}", ",".join(filter(None, parts)), run_workdir(args, row, seed))
      )
  return runs


def run_workdir(args, row, seed):
  """A run's workdir."""
  return args.workdir / row.name.lower().replace(", ", "_").replace(" ", "_") / f"seed{seed}"


def selected_rows(args):
  """The rows that are asked for."""
  return [row for row in ROWS if not args.only or row.mode in args.only.split(",")]


def command(run, every_epochs):
  """The main program for a run."""
  config = f"--config={ROOT / 'configs' / 'survey.py'}:{run.arguments}"
  flags = [f"--workdir={run.workdir}", f"--config.evaluate.every_epochs={every_epochs}"]
  return [sys.executable, "-m", "smskd_jax.main", config, *flags]


def run_all(runs, args, after):
  """All runs, so many at once; `after` is called behind each. Returns the failures by the run's name."""
  waiting = {run.name: run for run in runs if not (run.workdir / "result.json").exists()}
  failures: dict[str, str] = {}

  def command_of(name):
    return command(waiting[name], args.evaluate_every_epochs)

  def log_of(name):
    return waiting[name].workdir / "log.txt"

  for name, error in subprocess_pool.run_pool(list(waiting), command_of, log_of, args.jobs):
    if error:
      failures[name] = error
    after(failures)
  return failures


def outcome(row, workdir):
  """What a finished run found of its student: test accuracies in percent, and the hours it took."""
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
  """All that is known so far."""
  teachers = {
    run.name: outcome(Row(run.name, "nokd", None), run.workdir)
    for run in teacher_runs(args)
    if (run.workdir / "result.json").exists()
  }
  rows = []
  for row in selected_rows(args):
    of_seeds = {
      seed: outcome(row, run_workdir(args, row, seed))
      for seed in args.seeds
      if (run_workdir(args, row, seed) / "result.json").exists()
    }
    rows.append({**row._asdict(), "seeds": of_seeds})
  settings = {n: v for n, v in vars(args).items() if n not in ("workdir", "out", "jobs", "folder", "only")}
  return {"settings": settings, "teachers": teachers, "rows": rows, "failures": failures}


def claim_families(rows):
  """The survey's findings as differences: in each family of them the chance of any false claim is held at 5 %.

  The verdicts are the t-test's: the few seeds of a table like this cannot decide by the exact test.
  """
  last = {row["name"]: {seed: of["last"] for seed, of in row["seeds"].items()} for row in rows}
  if not {"UDA", "NOKD"} <= set(last):
    return {}

  def beyond(name, others):
    return {other: (last[name], last[other]) for other in others if other in last}

  above = ("KD", "UDA-NOKD", "UDA", "TAKD", "MKD")
  families = {
    "KD with augmentation (UDA) is better than": beyond("UDA", [n for n in last if n not in ("UDA", "NOKD")]),
    "no teacher (NOKD) is better than": beyond("NOKD", ("SFD", "OH")),
    "better than no teacher (NOKD)": {n: (last[n], last["NOKD"]) for n in above if n in last},
  }
  return {name: statistics.compare_all(family) for name, family in families.items()}


def as_markdown(table):
  """The table and the claims."""
  header = ["mode", "n", "last epoch", "best by test (oracle)", "the survey's", "images seen", "hours"]
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
  """What was run: the command, the budget, the hours."""
  of, rows = table["settings"], table["rows"]
  flags = " ".join(
    f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
    for name, value in of.items()
  )
  hours = sum(one["hours"] for row in rows for one in row["seeds"].values())
  teachers = ", ".join(f"{name} {one['last']:.2f} %" for name, one in table["teachers"].items())
  revisions = sorted({str(one["revision"])[:7] for row in rows for one in row["seeds"].values()})
  command = f"python benchmarks/survey.py --workdir=WORKDIR --out=OUT {flags}"
  size = f"{of['image_size']}x{of['image_size']}"
  return (
    f"# The survey's modes at the budget of a CPU\n\n```\n{command}\n```\n\n"
    f"Test accuracy in percent on {of['dataset']} at {size} pixels, mean and standard deviation over seeds: students "
    f"learn from {of['images']:,} images for {of['epochs']} epochs, their teachers ({teachers}) from all for "
    f"{of['teacher_epochs']}. The survey's numbers are for 50,000 images of 32x32 and 200 epochs. {hours:.1f} hours "
    f"of training in all, on a machine that did other work too; revision {', '.join(revisions)}."
  )


def _legend(families):
  most = max((claim.paired.n for family in families.values() for claim in family), default=0)
  return (
    "Differences seed by seed, in percentage points; `t` is Student's test for pairs, which takes them for normal; "
    f"`exact` flips their signs and at n = {most} cannot give less than {statistics.min_exact_p(most):.3g}. Intervals "
    "and p are each claim's own; `Holm` is p adjusted over the claims of its table, the verdict by `Holm (t)` at 5 %."
  )


def _row(row):
  of = list(row["seeds"].values())

  def spread(name):
    return statistics.summary([one[name] for one in of]).text()

  survey = "-" if row["survey"] is None else f"{row['survey']:.2f}"
  seen = f"{of[0]['images_seen']:,}" if of else "-"
  hours = f"{sum(one['hours'] for one in of):.2f}"
  return [row["name"], str(len(of)), spread("last"), spread("oracle"), survey, seen, hours]


def _cells(claim):
  of = claim.paired
  mean = "-" if of.mean is None else f"{of.mean:+.2f}"
  interval = "-" if of.t_interval is None else of.t_interval.text()
  p_values = (of.t_p, of.exact_p, claim.t_holm, claim.exact_holm)
  p = [_format_p(value) if of.n > 1 else "-" for value in p_values]
  return [claim.name, str(of.n), mean, interval, *p, str(claim.t_verdict)]


def _format_p(value):
  return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", default="cifar10")
  parser.add_argument("--folder", default="")
  parser.add_argument("--image_size", type=int, default=16)
  parser.add_argument("--padding", type=int, default=2)
  parser.add_argument("--images", type=int, default=5000, help="of the students")
  parser.add_argument("--epochs", type=int, default=8, help="of the students")
  parser.add_argument("--ab_epochs", type=int, default=2)
  parser.add_argument("--teacher_epochs", type=int, default=8)
  parser.add_argument("--evaluate_every_epochs", type=int, default=2)
  parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
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
