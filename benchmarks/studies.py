"""SMSKD's claims at the budget of a CPU: four studies on one teacher, by one command.

  python benchmarks/studies.py --workdir=runs/studies --jobs=2 --out=benchmarks/results/studies

resnet20 teaches resnet8 on the JPEG copies of CIFAR-10 at 16x16 pixels: the teacher learns from all 50,000 images, the
students from 5,000 for 18 epochs in all their stages together. All studies share one store, and so the teacher, what is
kept of its answers, and every beginning that their variants have in common. What is finished is not trained again, and
what was interrupted goes on; --seeds may be longer than before.

--arguments changes or adds any argument of smskd_jax/studies/recipe.py.
"""

import argparse
import json
from pathlib import Path
import subprocess
import sys

from smskd_jax.runtime.store import write_json

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ("ablation", "orders", "weighting", "stages")
ARGUMENTS = {
  "dataset": "cifar10_jpeg",
  "image_size": 16,
  "padding": 1,
  "teacher": "resnet20",
  "student": "resnet8",
  "teacher_cache": "float16",
  "max_images": 5000,
  "epochs": 18,
  "teacher_epochs": 10,
  "warmup_epochs": 0.5,
  "evaluate_every_epochs": 2,
}


def run(name, args, arguments):
  """Runs a study, or goes on with it; returns its exit status."""
  given = ",".join(f"{key}={value}" for key, value in (arguments | {"seeds": args.seeds}).items())
  command = [
    *(sys.executable, "-m", "smskd_jax.study"),
    f"--config={ROOT / 'configs' / 'studies' / name}.py:{given}",
    f"--workdir={args.workdir / name}",
    f"--store={args.workdir / 'store'}",
    f"--jobs={args.jobs}",
  ]
  return subprocess.run(command, cwd=ROOT, check=False).returncode


def results(name, args):
  """What a study has found, by variant and seed, with its teacher's accuracy; None before its end."""
  folder = args.workdir / name
  if not (folder / "result.json").is_file():
    return None
  found = json.loads((folder / "result.json").read_text())
  taught = json.loads((folder / "teachers" / "result.json").read_text())
  (teacher,) = (100 * one["metrics"]["last"]["test/accuracy"] for one in taught["stages"])
  return found | {"teacher": teacher, "revision": taught["git_revision"]}


def hours(store):
  """Of training of all stages, each once."""
  done = (json.loads(path.read_text()) for path in store.glob("*/result.json"))
  return sum(one.get("seconds", 0) for one in done) / 3600


def page(found, args, arguments):
  """The tables of all studies, and what they are of."""
  first = next(iter(found.values()))
  said = ", ".join(f"{key}={value}" for key, value in arguments.items())
  accuracy, spent = first["teacher"], hours(args.workdir / "store")
  begin = f"""# SMSKD's claims at the budget of a CPU

```
python benchmarks/studies.py --workdir=WORKDIR --jobs={args.jobs} --seeds={args.seeds} --out=OUT
```

Arguments of the studies: {said}. The teacher's accuracy is {accuracy:.2f} %. {spent:.1f} hours of training, each
on one core of a machine that did other work too; revision {first["revision"][:7]}.

With n seeds the exact test cannot give less than 2 / 2^n: at three seeds its verdict is `undecided` whatever they say.
Student's t, which takes differences for normal, can decide.
"""
  tables = [(args.workdir / name / "report.md").read_text().replace("# ", "## ", 1) for name in found]
  return "\n".join((begin, *tables))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--studies", default="+".join(STUDIES), help="joined by +")
  parser.add_argument("--arguments", default="", help="NAME=VALUE, joined by commas")
  parser.add_argument("--seeds", default="0+1+2", help="joined by +")
  parser.add_argument("--jobs", type=int, default=1, help="how many runs at once")
  parser.add_argument("--out", type=Path, help="a name of files: .json and .md")
  args = parser.parse_args()
  args.workdir = args.workdir.absolute()
  arguments = ARGUMENTS | dict(pair.split("=", 1) for pair in args.arguments.split(",") if pair)
  failed = [name for name in args.studies.split("+") if run(name, args, arguments)]
  found = {name: of for name in args.studies.split("+") if (of := results(name, args))}
  arguments.pop("folder", None)  # of one machine
  if args.out and found:
    write_json(args.out.with_suffix(".json"), {"arguments": arguments, "studies": found})
    args.out.with_suffix(".md").write_text(page(found, args, arguments))
  if failed:
    sys.exit(f"not finished: {', '.join(failed)}")


if __name__ == "__main__":
  main()
