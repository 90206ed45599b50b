"""What was published: outer weights with their sources, learning rates, accuracies.

literature.csv has the weights, which become terms of a config, and literature_accuracy.csv the accuracies. Rates and
accuracies are those of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020,
https://arxiv.org/abs/1910.10699) and its public code, RepDistiller b84f547: CIFAR-100, 240 epochs, test accuracy of the
last one in percent. They are the authors' numbers and not ours. `nokd` is the student that learns from labels alone.
"""

import ast
import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import method, plugin
from smskd_jax.errors import unknown_name_error

RECIPES_PATH = Path(__file__).with_suffix(".csv")
ACCURACIES_PATH = RECIPES_PATH.with_stem("literature_accuracy")
SLOW_NETWORKS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")  # learn at a fifth of the others' rate


class PublishedRecipe(NamedTuple):
  """A method as its authors weigh it."""

  term: ConfigDict
  task_weight: float  # of cross-entropy beside it
  source: str


@functools.cache
def _recipe_rows() -> dict[str, dict[tuple[str, str], dict[str, str]]]:
  """The table by recipe, then by teacher and student; ("", "") is for all pairs."""
  found: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
  with RECIPES_PATH.open(newline="") as file:
    for row in csv.DictReader(file):
      found.setdefault(row["recipe"], {})[row["teacher"], row["student"]] = row
  return found


def recipe_names() -> tuple[str, ...]:
  """The recipes: methods, and methods in a plug-in (`kd_ls`, `dkd_ls`, `ctkd`)."""
  return tuple(_recipe_rows())


def published_recipe(
  name: str, teacher: str = "", student: str = "", *, field: str = "recipe"
) -> PublishedRecipe:
  """A recipe for a pair of networks where the table has one, else that for all pairs.

  Args:
    name: of `names`.
    teacher: name of its network.
    student: likewise.
    field: what asks for it, for messages.

  Raises:
    UserError: there is none of the name.
  """
  table = _recipe_rows()
  if name not in table:
    raise unknown_name_error(field, name, table)
  row = table[name].get((teacher, student), table[name]["", ""])
  return PublishedRecipe(_method_term(row), float(row["task_weight"]), row["source"])


def learning_rate(network: str) -> float:
  """The rate at which a network is trained, by its name in `MODELS`."""
  return 0.01 if network in SLOW_NETWORKS else 0.05


@functools.cache
def published_accuracies() -> dict[tuple[str, str], dict[str, float]]:
  """By teacher and student, in the order of the paper's tables: the student's accuracy by each recipe, and `nokd`.

  What trains before its method does, as `ab` and `fsp` there, is left out: it is no single stage.
  """
  with ACCURACIES_PATH.open(newline="") as file:
    rows = [dict(row) for row in csv.DictReader(file)]
  return {
    (row.pop("teacher"), row.pop("student")): {name: float(value) for name, value in row.items()}
    for row in rows
  }


def _method_term(row: dict[str, str]) -> ConfigDict:
  """The method is named like the recipe, up to its plug-in."""
  given = dict(option.split("=") for option in filter(None, row["options"].split(";")))
  options: dict[str, Any] = {option: ast.literal_eval(value) for option, value in given.items()}
  return method(
    "kd" if row["recipe"] == "ctkd" else row["recipe"].removesuffix("_ls"),
    weight=float(row["weight"]),
    warmup_epochs=float(row["warmup_epochs"]),
    plugins=tuple(plugin(name) for name in filter(None, row["plugins"].split(";"))),
    **options,
  )
