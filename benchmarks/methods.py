"""Every method trains: a short real run of each recipe of smskd_jax/recipes/literature.csv, and what its loss did.

  python benchmarks/methods.py [--source=fashion_mnist_small] [--epochs=2] [--unit=kd,at] --store=FOLDER \\
    --out=benchmarks/results/methods.json

One teacher, and a fresh student for each recipe: with its published weights, on another data set, pair and budget than
they were published for, so that no accuracy here compares methods. What counts: the loss stays finite and its
distillation term falls, from the mean of its first ten steps to that of its last ten. What is finished lies in the
store and is not trained again.
"""

import argparse
import json
from pathlib import Path
import tempfile

import jax

from smskd_jax.config import experiment, network, stage
from smskd_jax.engine.experiment import run
from smskd_jax.errors import UserError
from smskd_jax.recipes import literature
from smskd_jax.runtime import console
from smskd_jax.runtime.store import StageEntry
from smskd_jax.runtime.workdir import environment
from smskd_jax.runtime.writer import read_metrics


def make_config(recipe, args):
  published = literature.published_recipe(recipe, args.teacher, args.student)
  common = {
    "batch_size": 64,
    "augment": {"crop_flip": {"padding": 2, "flip": True}},
    "optimizer": {"name": "sgd", "learning_rate": args.learning_rate},
  }
  student = network(args.student, width=args.width)
  if recipe == "dml":
    student = network(
      "cohort", first=args.student, width=args.width, peer=args.student, peer_width=args.width
    )
  if recipe == "simkd":
    teacher_options = {"teacher": args.teacher, "teacher_width": args.teacher_width}
    student = network("simkd", body=args.student, width=args.width, **teacher_options)
  return experiment(
    data={"source": args.source},
    networks={"teacher": network(args.teacher, width=args.teacher_width), "student": student},
    stages=(
      stage("teacher", epochs=args.teacher_epochs, **common),
      stage(
        "student",
        teachers=("teacher",),
        methods=(published.term,),
        task_weight=published.task_weight,
        epochs=args.epochs,
        schedule={"name": "constant"},
        **common,
      ),
    ),
    evaluate={"every_epochs": args.teacher_epochs + args.epochs},
    log_every_steps=10,
  )


def run_recipe(recipe, config, store):
  """Trains one recipe and returns its row of results."""
  with tempfile.TemporaryDirectory() as workdir:
    try:
      result = run(config, workdir, store=store)
    except UserError as error:
      return {"recipe": recipe, "error": str(error)}
  last = result["stages"][-1]
  lines = read_metrics(StageEntry(store, last["key"]).metrics)
  (name,) = {key for line in lines for key in line if key.startswith("train/distill/")}
  losses = [line[name] for line in lines if name in line]
  return {
    "recipe": recipe,
    "weight": config["stages"][1]["methods"][0]["weight"],
    "first": losses[0],
    "last": losses[-1],
    "falls": losses[-1] < losses[0],
    "test_accuracy": last["metrics"]["last"]["test/accuracy"],
    "seconds": last["seconds"],
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--source", default="fashion_mnist_small")
  parser.add_argument("--teacher", default="vgg8")
  parser.add_argument("--teacher_width", type=float, default=0.25)
  parser.add_argument("--teacher_epochs", type=int, default=4)
  parser.add_argument("--student", default="resnet8")
  parser.add_argument("--width", type=float, default=0.5)
  parser.add_argument("--epochs", type=int, default=2)
  parser.add_argument("--learning_rate", type=float, default=0.05)
  parser.add_argument("--unit", default="", help="recipes, joined by commas; default: all of the table")
  parser.add_argument("--store", type=Path, required=True)
  parser.add_argument("--out", type=Path, help="a JSON file for the table")
  args = parser.parse_args()
  rows = []
  for recipe in args.unit.split(",") if args.unit else literature.recipe_names():
    rows.append(run_recipe(recipe, make_config(recipe, args), args.store))
    console.log(json.dumps(rows[-1]))
    if args.out:
      settings = {
        name: str(value) for name, value in vars(args).items() if name not in ("out", "store", "unit")
      }
      table = {"settings": settings, "methods": rows, **environment(jax.local_devices())}
      args.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
  main()
