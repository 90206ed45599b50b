"""Published weights of methods with their sources, learning rates and accuracies.

literature.csv has the weights, which become methods of a config; literature_accuracy.csv has the accuracies. Rates and
accuracies are those of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020,
https://arxiv.org/abs/1910.10699) and its public code, RepDistiller b84f547: CIFAR-100, 240 epochs, test accuracy of the
last epoch in percent. All numbers are the authors'. `nokd` is the student trained with labels only.
"""

import ast
from collections.abc import Iterable
import csv
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import method, plugin
from smskd_jax.errors import unknown_name_error

RECIPES_PATH = Path(__file__).with_suffix(".csv")
ACCURACIES_PATH = RECIPES_PATH.with_stem("literature_accuracy")
LEARNING_RATE, SLOW_LEARNING_RATE = 0.05, 0.01
SLOW_NETWORKS = ("MobileNetV2", "ShuffleV1", "ShuffleV2")
PLUGIN_SUFFIXES = ("ls", "nd")  # of recipes: the method inside `logit_standardization` or `nd`
SAKD_PREFIX = "sakd_"  # of recipes of spot-adaptive distillation around a method
SAME_FAMILY_BIAS = 10.0  # of the policy's start in the SAKD code, for networks of one family


class PublishedRecipe(NamedTuple):
  """A method with the weights of its authors."""

  term: ConfigDict
  task_weight: float  # weight of cross-entropy
  source: str


@functools.cache
def _recipe_rows() -> dict[str, dict[tuple[str, str], dict[str, str]]]:
  """Rows of the table by recipe and (teacher, student); ("", "") applies to all other pairs."""
  rows: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
  with RECIPES_PATH.open(newline="") as file:
    for row in csv.DictReader(file):
      rows.setdefault(row["recipe"], {})[row["teacher"], row["student"]] = row
  return rows


def recipe_names() -> tuple[str, ...]:
  """Names of the recipes: methods, and methods with a plug-in (`kd_ls`, `ctkd` and others)."""
  return tuple(_recipe_rows())


def published_recipe(
  name: str, teacher: str = "", student: str = "", *, field: str = "recipe"
) -> PublishedRecipe:
  """Recipe for a pair of networks if the table has one, else the recipe for all pairs.

  Args:
    name: one of `recipe_names`.
    teacher: model of the teacher.
    student: model of the student.
    field: config field that contains `name`, for the message.

  Raises:
    UserError: an unknown name.
  """
  rows = _recipe_rows()
  if name not in rows:
    raise unknown_name_error(field, name, rows)
  row = rows[name].get((teacher, student), rows[name]["", ""])
  term = _method_term(row, same_family=_family(teacher) == _family(student) != "")
  return PublishedRecipe(term, float(row["task_weight"]), row["source"])


def learning_rate(model: str) -> float:
  """Published learning rate of a model of `MODELS`."""
  return SLOW_LEARNING_RATE if model in SLOW_NETWORKS else LEARNING_RATE


@functools.cache
def published_accuracies() -> dict[tuple[str, str], dict[str, float]]:
  """Student accuracy in percent by (teacher, student) and recipe.

  `nokd` is included; the order is that of the paper's tables.

  Methods with a pre-training phase (`ab` and `fsp` in that paper) are left out: they are not a single stage.
  """
  with ACCURACIES_PATH.open(newline="") as file:
    rows = [dict(row) for row in csv.DictReader(file)]
  return {
    (row.pop("teacher"), row.pop("student")): {name: float(value) for name, value in row.items()}
    for row in rows
  }


def _method_term(row: dict[str, str], *, same_family: bool) -> ConfigDict:
  """Method of a row, for networks of one family or of two."""
  name, _, suffix = row["recipe"].rpartition("_")
  return method(
    "kd"
    if row["recipe"] == "ctkd"
    else name
    if suffix in PLUGIN_SUFFIXES
    else row["recipe"].removeprefix(SAKD_PREFIX),
    weight=float(row["weight"]),
    warmup_epochs=float(row["warmup_epochs"]),
    plugins=tuple(_plugin_term(text, same_family) for text in row["plugins"].split(";") if text),
    **_parse_options(row["options"].split(";")),
  )


def _plugin_term(text: str, same_family: bool) -> ConfigDict:
  """Plug-in of a text NAME or NAME:OPTION=VALUE:OPTION=VALUE."""
  name, *texts = text.split(":")
  options = _parse_options(texts)
  if name == "sakd" and same_family:
    options["initial_bias"] = SAME_FAMILY_BIAS
  return plugin(name, **options)


def _parse_options(texts: Iterable[str]) -> dict[str, Any]:
  pairs = (text.split("=") for text in texts if text)
  return {name: ast.literal_eval(value) for name, value in pairs}


def _family(model: str) -> str:
  """Letters of a model's name before its first digit: 'wrn_' of 'wrn_40_2'."""
  return re.split(r"\d", model)[0]
