"""Time saved by `teacher_cache`: a study of several seeds and three stages on one teacher, with the cache and without.

  python benchmarks/teacher_cache.py --workdir=runs/teacher_cache --out=benchmarks/results/teacher_cache.json

For each seed a student is trained by KD, RKD and DKD, one method per stage, the later ones with the SMSKD reference
term: without a cache; with a cache in a store of its own; and with a cache and all seeds in one program, in a third
store. The first two alternate seed by seed in one process. Computing the teacher's outputs is part of the time. All
runs share the compiled programs of the workdir. The teacher is trained for one epoch beforehand, outside the time: its
accuracy does not change its cost.
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
  """Experiment on the data of the arguments."""
  return make_experiment(
    data={"source": args.data, "folder": args.folder, "image_size": args.image_size},
    evaluate={"every_epochs": args.epochs, "num_forgetting_images": 0},
    **fields,
  )


def training_fields(args):
  """Fields of every stage."""
  return {
    "batch_size": args.batch_size,
    "augment": {"crop_flip": {"padding": args.padding, "num_views": args.views}},
  }


def student_config(args, seed, kind, teacher):
  """Experiment of the student with one seed."""
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
  """Calls a function of no arguments that runs experiments; returns seconds and teacher passes by stage."""
  start_time = time.monotonic()
  results = call()
  return {
    "seconds": time.monotonic() - start_time,
    "stages": [[one["seconds"] for one in result["stages"]] for result in results],
    "teacher_forward_passes": [
      [one["forward_passes"]["teachers"] for one in result["stages"]] for result in results
    ],
  }


def run_seed(args, seed, kind, teacher, load):
  """Runs one seed with `teacher_cache=kind`."""
  folder, seed_config = args.workdir / kind, student_config(args, seed, kind, teacher)
  return timed(
    lambda: [experiment.run(seed_config, folder / f"seed{seed}", store=folder / "store", load=load)]
  )


def run_all_seeds(args, teacher, load):
  """Runs all seeds in one program, with the cache."""
  folder = args.workdir / "parallel"
  runs = [
    (student_config(args, seed, "float32", teacher), folder / f"seed{seed}") for seed in range(args.seeds)
  ]
  return timed(lambda: experiment.run_seeds(runs, store=folder / "store", load=load))


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10", help="source of the data")
  parser.add_argument("--folder", default="", help="folder of the data")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--padding", type=int, default=4)
  parser.add_argument(
    "--views", type=int, default=0, help="different views of each image, on all sides; 0: all"
  )
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--epochs", type=int, default=30, help="epochs of each stage")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--teacher", default="resnet56")
  parser.add_argument("--student", default="resnet8")
  parser.add_argument("--seeds", type=int, default=5)
  parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
  parser.add_argument("--out", type=Path, help="a JSON file for the result")
  args = parser.parse_args()
  if args.workdir.exists():
    parser.error(f"--workdir: {args.workdir} exists already; finished stages would not be trained again")
  compilation_cache.enable(str(args.workdir / "programs"))
  load = functools.cache(data.load)  # every set is read once
  devices = parallel.select_devices([args.batch_size], num_seeds=args.seeds)
  teacher = args.workdir / "teacher"
  stages = (stage("teacher", max_images=args.images, **training_fields(args)),)
  experiment.run(config(args, networks={"teacher": network(args.teacher)}, stages=stages), teacher, load=load)
  runs = {kind: [] for kind in KINDS}
  for seed in range(args.seeds):
    for kind in KINDS:
      runs[kind].append(run_seed(args, seed, kind, teacher, load))
  parallel_run = run_all_seeds(args, teacher, load)
  total = {kind: sum(run["seconds"] for run in kind_runs) for kind, kind_runs in runs.items()}
  later = [b["seconds"] / a["seconds"] for a, b in zip(runs["off"][1:], runs["float32"][1:], strict=True)]
  table = {
    "seconds": total,
    "ratio": total["float32"] / total["off"],
    "ratio_of_later_seeds": statistics.median(later) if later else None,
    "ratio_parallel_seeds": parallel_run["seconds"] / total["off"],
    "runs": runs | {"parallel": parallel_run},
    "settings": {name: str(value) for name, value in vars(args).items() if name not in ("workdir", "out")},
    **environment(devices),
  }
  print(
    json.dumps(
      {name: table[name] for name in ("seconds", "ratio", "ratio_of_later_seeds", "ratio_parallel_seeds")},
      indent=2,
    )
  )
  if args.out:
    write_json(args.out, table)


if __name__ == "__main__":
  main()
