"""What `teacher_cache` saves: a study of several seeds and three stages on one teacher, with it and without.

  python benchmarks/teacher_cache.py --workdir=runs/teacher_cache --out=benchmarks/results/teacher_cache.json

Trains a student by KD, RKD and DKD, one a stage, the later ones anchored by the one before, once for each seed; all of
it again with the teacher's answers kept, in a store of its own; and once more so, with all seeds at once, in a third.
The first two take turns seed by seed, in one process. The answers are computed when asked for, and this counts.
Compiled programs are kept in the workdir for all. The teacher is trained before, for an epoch, and not counted: what it
knows does not change what it costs.
"""

import argparse
import functools
import json
from pathlib import Path
import statistics
import time

from smskd_jax import data
from smskd_jax.config import experiment as make_experiment
from smskd_jax.config import method, network, stage
from smskd_jax.engine import experiment
from smskd_jax.runtime import compilation_cache, parallel
from smskd_jax.runtime.store import write_json
from smskd_jax.runtime.workdir import environment

KINDS = ("off", "float32")
METHODS = (("kd", 0.9), ("rkd", 0.1), ("dkd", 1.0))


def config(args, **fields):
  """An experiment on the chosen images."""
  return make_experiment(
    data={"source": args.data, "folder": args.folder, "image_size": args.image_size},
    evaluate={"every_epochs": args.epochs, "num_forgetting_images": 0},
    **fields,
  )


def training_fields(args):
  """How every network is trained."""
  return {
    "batch_size": args.batch_size,
    "augment": {"crop_flip": {"padding": args.padding, "num_views": args.views}},
  }


def student_config(args, seed, kind, teacher):
  """The experiment of a seed."""
  student = {
    "teachers": ("teacher",),
    "epochs": args.epochs,
    "max_images": args.images,
    **training_fields(args),
  }
  stages = [
    stage(
      "student",
      methods=(method(name, weight=weight),),
      teacher_cache=kind,
      reference={"stage": "previous" if i else "none"},
      **student,
    )
    for i, (name, weight) in enumerate(METHODS)
  ]
  networks = {"teacher": network(args.teacher, variables=str(teacher)), "student": network(args.student)}
  return config(args, seed=seed, networks=networks, stages=tuple(stages))


def timed(call):
  """Seconds, and what the results of a call tell by stage."""
  began = time.monotonic()
  results = call()
  return {
    "seconds": time.monotonic() - began,
    "stages": [[one["seconds"] for one in result["stages"]] for result in results],
    "teacher_forward_passes": [
      [one["forward_passes"]["teachers"] for one in result["stages"]] for result in results
    ],
  }


def run_seed(args, seed, kind, teacher, load):
  """One seed's run."""
  folder = args.workdir / kind
  where = folder / f"seed{seed}"
  asked = student_config(args, seed, kind, teacher)
  return timed(lambda: [experiment.run(asked, where, store=folder / "store", load=load)])


def run_all_seeds(args, teacher, load):
  """All seeds, in one run."""
  folder = args.workdir / "at_once"
  asked = [
    (student_config(args, seed, "float32", teacher), folder / f"seed{seed}") for seed in range(args.seeds)
  ]
  return timed(lambda: experiment.run_seeds(asked, store=folder / "store", load=load))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10")
  parser.add_argument("--folder", default="")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--padding", type=int, default=4)
  parser.add_argument("--views", type=int, default=0, help="of each image, on both sides; 0: all")
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--epochs", type=int, default=30, help="of each stage")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--teacher", default="resnet56")
  parser.add_argument("--student", default="resnet8")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
  parser.add_argument("--out", type=Path, help="a JSON file for the result")
  args = parser.parse_args()
  if args.workdir.exists():
    parser.error(f"--workdir: {args.workdir} is there already; what it holds would not be trained again")
  compilation_cache.enable(str(args.workdir / "programs"))
  load = functools.cache(data.load)  # read once for all runs
  devices = parallel.select_devices([args.batch_size], num_seeds=args.seeds)
  teacher = args.workdir / "teacher"
  stages = (stage("teacher", max_images=args.images, **training_fields(args)),)
  experiment.run(config(args, networks={"teacher": network(args.teacher)}, stages=stages), teacher, load=load)
  found = {kind: [] for kind in KINDS}
  for seed in range(args.seeds):
    for kind in KINDS:
      found[kind].append(run_seed(args, seed, kind, teacher, load))
  together = run_all_seeds(args, teacher, load)
  total = {kind: sum(of["seconds"] for of in runs) for kind, runs in found.items()}
  later = [b["seconds"] / a["seconds"] for a, b in zip(found["off"][1:], found["float32"][1:], strict=True)]
  table = {
    "seconds": total,
    "ratio": total["float32"] / total["off"],
    "ratio_of_later_seeds": statistics.median(later) if later else None,
    "ratio_at_once": together["seconds"] / total["off"],
    "runs": found | {"at_once": together},
    "settings": {name: str(value) for name, value in vars(args).items() if name not in ("workdir", "out")},
    **environment(devices),
  }
  print(
    json.dumps(
      {name: table[name] for name in ("seconds", "ratio", "ratio_of_later_seeds", "ratio_at_once")}, indent=2
    )
  )
  if args.out:
    write_json(args.out, table)


if __name__ == "__main__":
  main()
