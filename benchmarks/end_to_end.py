"""Wall time of a whole SMSKD run of three stages with a given teacher, here and in plain PyTorch.

  python benchmarks/end_to_end.py --workdir=runs/end_to_end --out=benchmarks/results/end_to_end.json

The stages are KD, RKD and DKD; the later ones have the SMSKD reference term. The time includes batches, crops and
flips, steps, evaluations of the test set, and files. It excludes imports, reading the data set (once for all sides),
and the training of the teacher. Sides:

  uncached       this package with its defaults: every step runs the teacher
  cached         this package with `teacher_cache`, which is empty: computing the teacher's outputs is included
  cached_later   the same with another seed, which finds the outputs that `cached` has computed
  nchw           eager PyTorch in its usual memory format on all cores, as in public code: benchmarks/torch_job.py
  channels_last  eager PyTorch in that memory format on all cores

The sides alternate seed by seed in one process; ratios to `nchw` are those of one seed. Compilation is included:
`uncached` and `cached` compile for the first seed, and all later runs read the compiled programs from the workdir.

All sides start from variables of equal distribution, process equally many images in equally many steps, and evaluate
the teacher once and the student after equally many epochs. This package also evaluates the new student,
stores outputs of the test set, and writes metrics, checkpoints and a report; all of this is included. Diagnostics on
the test set (`num_forgetting_images`, `feature_images`) have no counterpart and are off; --diagnostics turns them on.
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
REPORTED = ("stages", "teacher_forward_passes", "accuracy", "teacher_accuracy")  # for each seed
SIDES = ("uncached", "nchw", "channels_last", "cached", "cached_later")


def config(args, stages, **fields):
  """Experiment on the data of the arguments."""
  off = {} if args.diagnostics else {"num_forgetting_images": 0, "feature_images": 0}
  return make_experiment(
    data={"source": args.data, "folder": args.folder, "image_size": args.image_size},
    evaluate={"every_epochs": args.evaluate_every or args.epochs, **off},
    stages=stages,
    **fields,
  )


def training_fields(args):
  """Fields of every stage."""
  crops = {"crop_flip": {"padding": args.padding}}
  return {"batch_size": args.batch_size, "augment": crops, "max_images": args.images}


def student_config(args, teacher, seed, cache):
  """Experiment of the student; `teacher` is the folder of the teacher's variables."""
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
  """Runs this package; returns seconds, work and accuracies of the run and its stages."""
  run_config = student_config(args, args.workdir / "teacher", seed, cache)
  start_time = time.monotonic()
  result = experiment.run(run_config, folder, store=store, load=load)
  seconds, stages = time.monotonic() - start_time, result["stages"]
  metrics = [read_metrics(StageEntry(store, one["key"]).metrics) for one in stages]
  return {
    "teacher_accuracy": result["pretrained"][0]["metrics"]["test/accuracy"],
    "stages": [one["seconds"] for one in stages],
    "steps": [one["steps"] for one in stages],
    "tests": [sum("test/accuracy" in line and line["step"] > 0 for line in lines) for lines in metrics],
    "teacher_forward_passes": [one["forward_passes"]["teachers"] for one in stages],
    "accuracy": stages[-1]["metrics"]["last"]["test/accuracy"],
    "seconds": seconds,
  }


def run_pytorch(args, folder, load, seed, *, channels_last):
  """Runs PyTorch; returns the same fields as `run_smskd`."""
  resolved = resolve(student_config(args, args.workdir / "teacher", seed, "off"))
  dataset = load(args.data, folder=args.folder, image_size=args.image_size)
  pretrained = {"teacher": variables.load("teacher", str(args.workdir / "teacher"), "teacher")}
  plans = make_plans(resolved, dataset, pretrained)
  image = introspection.image_spec(dataset.image_shape)
  student = initialization.init_variables(plans[0].stage.student, jax.random.key(seed), image)
  return torch_job.run(
    plans,
    dataset,
    pretrained["teacher"].variables,
    jax.device_get(student),
    folder,
    seed=seed,
    padding=args.padding,
    batch_size=resolved["evaluate"]["batch_size"],
    channels_last=channels_last,
  )


def run_turn(args, load, seed):
  """Runs all sides once; returns their results by name."""
  store = args.workdir / "stores" / f"seed{seed}"

  def folder(side):
    return args.workdir / side / f"seed{seed}"

  smskd = functools.partial(run_smskd, args, load=load)
  pytorch = functools.partial(run_pytorch, args, load=load, seed=seed)
  results = {
    "uncached": smskd(folder("uncached"), seed=seed, cache="off", store=folder("uncached") / "store"),
    "nchw": pytorch(folder("nchw"), channels_last=False),
    "channels_last": pytorch(folder("channels_last"), channels_last=True),
    "cached": smskd(folder("cached"), seed=seed, cache="float32", store=store),
    "cached_later": smskd(folder("cached_later"), seed=args.seeds + seed, cache="float32", store=store),
  }
  expected = results["nchw"]
  for side, result in results.items():
    for name in ("steps", "tests"):
      if result[name] != expected[name]:
        raise SystemExit(f"{side} made {result[name]} {name}, nchw {expected[name]}")
    if abs(result["teacher_accuracy"] - expected["teacher_accuracy"]) > 0.01:
      raise SystemExit(f"{side} and nchw have different teachers: their test accuracies differ")
  return results


def make_loader(test_images):
  """`data.load` that reads each set once and keeps evenly spaced test images; 0: all."""

  @functools.cache
  def load(source, **options):
    dataset = data.load(source, **options)
    count = len(dataset.test.label)
    indices = evaluate.evenly_spaced(test_images or count, count)
    return dataset._replace(test=Split(dataset.test.image[indices], dataset.test.label[indices]))

  def load_source(source, *, folder="", image_size=0, **unused):
    del unused
    return load(source, folder=folder, image_size=image_size)

  return load_source


def work_done(turn):
  """Numbers of steps and evaluations of each stage, equal on all sides."""
  return {name: turn["nchw"][name] for name in ("steps", "tests")}


def summary(turns):
  """Seconds, ratios and medians of each side."""
  sides = {}
  for side in SIDES:
    seconds = [turn[side]["seconds"] for turn in turns]
    ratios = [turn[side]["seconds"] / turn["nchw"]["seconds"] for turn in turns]
    each = {name: [turn[side][name] for turn in turns] for name in REPORTED}
    median = {"median_seconds": statistics.median(seconds), "median_ratio": statistics.median(ratios)}
    sides[side] = {"seconds": seconds, "ratios_to_nchw": ratios, **median, **each}
  return sides


def table(sides):
  header = ("side", "seconds", "by seed", "ratio to nchw", "by seed", "test accuracy by seed, %")
  return console.format_table(
    header,
    [
      (
        side,
        f"{result['median_seconds']:.1f}",
        " ".join(f"{x:.1f}" for x in result["seconds"]),
        f"{result['median_ratio']:.2f}",
        " ".join(f"{x:.2f}" for x in result["ratios_to_nchw"]),
        " ".join(f"{100 * x:.1f}" for x in result["accuracy"]),
      )
      for side, result in sides.items()
    ],
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="cifar10", help="source of colour images")
  parser.add_argument("--folder", default="", help="folder of the data")
  parser.add_argument("--image_size", type=int, default=0)
  parser.add_argument("--padding", type=int, default=4)
  parser.add_argument("--images", type=int, default=5000)
  parser.add_argument("--test_images", type=int, default=1000, help="0: all")
  parser.add_argument("--epochs", type=int, default=10, help="epochs of each stage")
  parser.add_argument("--evaluate_every", type=int, default=0, help="epochs; 0: only at the end of stages")
  parser.add_argument("--batch_size", type=int, default=64)
  parser.add_argument("--teacher", default="resnet56", help="CIFAR ResNet, as the student")
  parser.add_argument("--teacher_epochs", type=int, default=1)
  parser.add_argument("--student", default="resnet20")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--diagnostics", action="store_true")
  parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
  parser.add_argument("--out", type=Path, help="a JSON file for the result, written after each seed")
  args = parser.parse_args()
  if args.workdir.exists():
    parser.error(f"--workdir: {args.workdir} exists already; finished stages would not be trained again")
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
