"""A whole job, ours and in plain PyTorch: three stages of SMSKD from a teacher that is there already.

  python benchmarks/end_to_end.py --workdir=runs/job --out=benchmarks/results/job.json

KD, RKD and DKD, one a stage, the later ones anchored by the student as the stage before left it, each image by 1 - TCP.
Counted is all from the call to its end: batches, crops and flips, steps, evaluations of the test set, files. Not
counted: importing, reading the data set (once for all sides), and the teacher. Sides:

  uncached       ours as it is by default, the teacher run in every step
  cached         ours with `teacher_cache` and nothing kept yet: the teacher's answers are computed, and counted
  cached_later   the same of another seed, which finds the answers that `cached` has left
  nchw           PyTorch, eager, as public code of the field uses it, on all cores: benchmarks/torch_job.py
  channels_last  PyTorch with that memory format, on all cores

They take turns seed by seed in one process; ratios to `nchw` are of one turn. Ours counts its compilation: `uncached`
and `cached` compile with the first seed, and all later runs read what was compiled from the workdir.

Both sides begin with variables drawn alike, see as many images in as many steps, and test the teacher once and the
student after as many epochs. Beside that ours tests the student before each stage, keeps what it says of the test set,
writes metrics, checkpoints and a report, and counts all of it. What it computes of the test set for later study
(`num_forgetting_images`, `feature_images`) has no counterpart and is off; --diagnostics puts it on.
"""

import argparse
import functools
import json
import os
from pathlib import Path
import statistics
import time

import jax
import torch
import torch_job

from smskd_jax import data
from smskd_jax.config import experiment as make_experiment
from smskd_jax.config import method, network, resolve, stage
from smskd_jax.data.dataset import Split
from smskd_jax.engine import experiment
from smskd_jax.engine.plan import make_plans
from smskd_jax.exchange import variables
from smskd_jax.models import introspection
from smskd_jax.runtime import compilation_cache, console, parallel
from smskd_jax.runtime.store import StageEntry, write_json
from smskd_jax.runtime.workdir import environment
from smskd_jax.runtime.writer import read_metrics
from smskd_jax.training import evaluate, initialization

METHODS = (("kd", 0.9), ("rkd", 0.1), ("dkd", 1.0))
REPORTED = ("stages", "teacher_forward_passes", "accuracy", "teacher_accuracy")  # of each seed
SIDES = ("uncached", "nchw", "channels_last", "cached", "cached_later")


def config(args, stages, **fields):
  """An experiment on the chosen images."""
  off = {} if args.diagnostics else {"num_forgetting_images": 0, "feature_images": 0}
  return make_experiment(
    data={"source": args.data, "folder": args.folder, "image_size": args.image_size},
    evaluate={"every_epochs": args.evaluate_every or args.epochs, **off},
    stages=stages,
    **fields,
  )


def training_fields(args):
  """How every network is trained."""
  crops = {"crop_flip": {"padding": args.padding}}
  return {"batch_size": args.batch_size, "augment": crops, "max_images": args.images}


def student_config(args, teacher, seed, cache):
  """The job's config; the teacher's variables are those in a folder."""
  fields = {"teachers": ("teacher",), "epochs": args.epochs, "teacher_cache": cache, **training_fields(args)}
  stages = tuple(
    stage(
      "student",
      methods=(method(name, weight=weight),),
      reference={"stage": "previous" if i else "none"},
      **fields,
    )
    for i, (name, weight) in enumerate(METHODS)
  )
  networks = {"teacher": network(args.teacher, variables=str(teacher)), "student": network(args.student)}
  return config(args, stages, seed=seed, networks=networks)


def run_smskd(args, folder, load, seed, cache, store):
  """Our job: seconds in all and by stage, and what was done and learned."""
  wanted = student_config(args, args.workdir / "teacher", seed, cache)
  began = time.monotonic()
  result = experiment.run(wanted, folder, store=store, load=load)
  seconds, stages = time.monotonic() - began, result["stages"]
  lines = [read_metrics(StageEntry(store, one["key"]).metrics) for one in stages]
  return {
    "teacher_accuracy": result["given"][0]["metrics"]["test/accuracy"],
    "stages": [one["seconds"] for one in stages],
    "steps": [one["steps"] for one in stages],
    "tests": [sum("test/accuracy" in line and line["step"] > 0 for line in of) for of in lines],
    "teacher_forward_passes": [one["forward_passes"]["teachers"] for one in stages],
    "accuracy": stages[-1]["metrics"]["last"]["test/accuracy"],
    "seconds": seconds,
  }


def run_pytorch(args, folder, load, seed, *, channels_last):
  """The same in PyTorch."""
  resolved = resolve(student_config(args, args.workdir / "teacher", seed, "off"))
  dataset = load(args.data, folder=args.folder, image_size=args.image_size)
  given = {"teacher": variables.load("teacher", str(args.workdir / "teacher"), "teacher")}
  plans = make_plans(resolved, dataset, given)
  image = introspection.image_spec(dataset.image_shape)
  student = initialization.init_variables(plans[0].stage.student, jax.random.key(seed), image)
  return torch_job.run(
    plans,
    dataset,
    given["teacher"].variables,
    jax.device_get(student),
    folder,
    seed=seed,
    padding=args.padding,
    batch_size=resolved["evaluate"]["batch_size"],
    channels_last=channels_last,
  )


def run_turn(args, load, seed):
  """All sides once, by their names."""
  folder, store = (lambda side: args.workdir / side / f"seed{seed}"), args.workdir / "stores" / f"seed{seed}"
  of_ours = functools.partial(run_smskd, args, load=load)
  of_torch = functools.partial(run_pytorch, args, load=load, seed=seed)
  found = {
    "uncached": of_ours(folder("uncached"), seed=seed, cache="off", store=folder("uncached") / "store"),
    "nchw": of_torch(folder("nchw"), channels_last=False),
    "channels_last": of_torch(folder("channels_last"), channels_last=True),
    "cached": of_ours(folder("cached"), seed=seed, cache="float32", store=store),
    "cached_later": of_ours(folder("cached_later"), seed=args.seeds + seed, cache="float32", store=store),
  }
  for side, of_side in found.items():
    for name in ("steps", "tests"):
      if of_side[name] != found["nchw"][name]:
        raise SystemExit(f"{side} made {of_side[name]} {name}, nchw {found['nchw'][name]}")
    if abs(of_side["teacher_accuracy"] - found["nchw"]["teacher_accuracy"]) > 0.01:
      raise SystemExit(
        f"{side} is taught by another teacher than nchw: it says something else of the test set"
      )
  return found


def make_loader(test_images):
  """`data.load`, which reads each set once and cuts its test images to so many, spread evenly."""

  @functools.cache
  def load(source, **options):
    dataset = data.load(source, **options)
    rows = evaluate.evenly_spaced(test_images or len(dataset.test.label), len(dataset.test.label))
    return dataset._replace(test=Split(dataset.test.image[rows], dataset.test.label[rows]))

  def by_source(source, *, folder="", image_size=0, **rest):
    del rest  # is not asked for here
    return load(source, folder=folder, image_size=image_size)

  return by_source


def work_done(turn):
  """What all sides did alike, of each stage."""
  return {name: turn["nchw"][name] for name in ("steps", "tests")}


def summary(turns):
  """What is told of each side."""
  sides = {}
  for side in SIDES:
    seconds = [turn[side]["seconds"] for turn in turns]
    ratios = [turn[side]["seconds"] / turn["nchw"]["seconds"] for turn in turns]
    each = {name: [turn[side][name] for turn in turns] for name in REPORTED}
    median = {"median_seconds": statistics.median(seconds), "median_ratio": statistics.median(ratios)}
    sides[side] = {"seconds": seconds, "ratios_to_nchw": ratios, **median, **each}
  return sides


def table(sides):
  percent = lambda values: " ".join(f"{100 * value:.1f}" for value in values)
  header = ("side", "seconds", "by seed", "ratio to nchw", "by seed", "test accuracy by seed, %")
  return console.format_table(
    header,
    [
      (
        side,
        f"{of['median_seconds']:.1f}",
        " ".join(f"{x:.1f}" for x in of["seconds"]),
        f"{of['median_ratio']:.2f}",
        " ".join(f"{x:.2f}" for x in of["ratios_to_nchw"]),
        percent(of["accuracy"]),
      )
      for side, of in sides.items()
    ],
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10", help="of colours")
  parser.add_argument("--folder", default="")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--padding", type=int, default=4)
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--test_images", type=int, default=1000, help="0: all")
  parser.add_argument("--epochs", type=int, default=10, help="of each stage")
  parser.add_argument("--evaluate_every", type=int, default=0, help="so many epochs; 0: at each stage's end")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--teacher", default="resnet56", help="a ResNet for CIFAR, as the student")
  parser.add_argument("--teacher_epochs", type=int, default=1)
  parser.add_argument("--student", default="resnet20")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--diagnostics", action="store_true")
  parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
  parser.add_argument("--out", type=Path, help="a JSON file for the result, written after each seed")
  args = parser.parse_args()
  if args.workdir.exists():
    parser.error(f"--workdir: {args.workdir} is there already; what it holds would not be trained again")
  compilation_cache.enable(str(args.workdir / "programs"))
  devices, cores = parallel.select_devices([args.batch_size]), len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  torch_job.warm_up()
  load, turns = make_loader(args.test_images), []
  stages = (stage("teacher", epochs=args.teacher_epochs, **training_fields(args)),)
  teacher = config(args, stages, networks={"teacher": network(args.teacher)})
  experiment.run(teacher, args.workdir / "teacher", load=load)
  settings = {name: value for name, value in vars(args).items() if name not in ("workdir", "out", "folder")}
  for seed in range(args.seeds):
    turns.append(run_turn(args, load, seed))
    if args.out:
      about = {"settings": settings, "cores": cores, "torch": torch.__version__, **environment(devices)}
      write_json(args.out, {"sides": summary(turns), "work": work_done(turns[0]), **about})
  console.log(json.dumps(work_done(turns[0])))
  console.log(table(summary(turns)))


if __name__ == "__main__":
  main()
