"""Mistakes in a resolved config: values out of range, and stages that need what is not there yet."""

from collections.abc import Callable, Iterator
import functools
import math
import re
from typing import Any

from smskd_jax import losses, models
from smskd_jax.errors import UserError, unknown
from smskd_jax.filling import options
from smskd_jax.training import optimizer, reference

# Field of a config -> the smallest value allowed and whether the value may be it.
_AT_LEAST = {
  "seed": 0,
  "split_seed": 0,
  "weight": 0,
  "task_weight": 0,
  "warmup_epochs": 0,
  "padding": 0,
  "num_classes": 0,
}
_ABOVE = {
  "epochs": 0,
  "batch_size": 0,
  "temperature": 0,
  "tcp_temperature": 0,
  "learning_rate": 0,
  "every_epochs": 0,
  "every_steps": 0,
  "log_every_steps": 0,
  "keep": 0,
  "calibration_bins": 0,
}


def check_values(config: dict[str, Any]) -> None:
  """Checks every value by itself: numbers and their ranges, and what the factories say of their options.

  Raises:
    UserError: the first value out of range, by its field.
  """
  for field, value in _leaves("config", config):
    name = field.rpartition(".")[2]
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{field}: {value} is not a finite number")
    if name in _AT_LEAST and not value >= _AT_LEAST[name]:
      raise UserError(f"{field}: {value} is too small; it must be at least {_AT_LEAST[name]}")
    if name in _ABOVE and not value > _ABOVE[name]:
      raise UserError(f"{field}: {value} is too small; it must be greater than {_ABOVE[name]}")
  if not config["data"]["validation"] >= 0 or not config["data"]["validation"] < 1:
    raise UserError(f"config.data.validation: {config['data']['validation']} is not in [0, 1)")
  for name, entry in config["networks"].items():
    field, factory = f"config.networks.{name}", models.factory(entry["model"])
    _check_factory(field, factory, entry, "model", "variables", num_classes=2)
  for i, stage in enumerate(config["stages"]):
    _check_stage_factories(f"config.stages[{i}]", stage)


def _check_stage_factories(field: str, stage: dict[str, Any]) -> None:
  for j, method in enumerate(stage["methods"]):
    _check_factory(
      f"{field}.methods[{j}]",
      losses.METHODS[method["name"]],
      method,
      "name",
      "weight",
      "warmup_epochs",
      "plugins",
    )
    for k, plugin in enumerate(method["plugins"]):
      if plugin["name"] in losses.OF_LOGITS and method["name"] not in losses.FAMILIES["response"]:
        raise UserError(
          f"{field}.methods[{j}].plugins[{k}]: {plugin['name']!r} changes logits, which {method['name']!r} does not "
          f"read; it wraps {', '.join(losses.FAMILIES['response'])}"
        )
      wrap = functools.partial(losses.PLUGINS[plugin["name"]], losses.METHODS["kd"]())
      _check_factory(f"{field}.methods[{j}].plugins[{k}]", wrap, plugin, "name")
  schedule, optimiser = stage["schedule"], stage["optimizer"]
  rate = optimiser["learning_rate"]
  of_schedule = lambda **own: optimizer.SCHEDULES[schedule["name"]](rate, 1, stage["epochs"], **own)
  of_optimizer = lambda **own: optimizer.OPTIMIZERS[optimiser["name"]](rate, **own)
  _check_factory(f"{field}.schedule", of_schedule, schedule, "name")
  _check_factory(f"{field}.optimizer", of_optimizer, optimiser, "name", "learning_rate")


def _check_factory(field: str, factory: Callable, entry: dict[str, Any], *ours: str, **needed: Any) -> None:
  try:
    factory(**options(entry, *ours) | needed)
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error


def check_stages(config: dict[str, Any]) -> None:
  """Checks that each stage finds what it reads: its networks, trained teachers, an earlier stage to be anchored by.

  Raises:
    UserError: the first stage that does not.
  """
  if not config["stages"]:
    raise UserError("config.stages: there are none; add at least one stage(...)")
  for i, stage in enumerate(config["stages"]):
    field, earlier = f"config.stages[{i}]", config["stages"][:i]
    _check_name(field, stage, earlier)
    for name in (stage["learner"], *stage["teachers"]):
      if name not in config["networks"]:
        raise unknown(f"{field}: network", name, config["networks"])
    for name in stage["teachers"]:
      if name not in [s["learner"] for s in earlier] and not config["networks"][name]["variables"]:
        raise UserError(
          f"{field}.teachers: {name!r} is not trained by then; put a stage with learner={name!r} before this one, "
          f"or say in config.networks.{name}.variables where its variables are"
        )
    for method in stage["methods"]:
      if not stage["teachers"] and method["name"] not in losses.WITHOUT_TEACHER:
        raise UserError(f"{field}.teachers: empty, but {method['name']!r} needs a teacher")
    if stage["start"] not in ("previous", "fresh"):
      raise unknown(f"{field}.start", stage["start"], ("previous", "fresh"))
    _check_reference(field, stage, earlier)


def _check_name(field: str, stage: dict[str, Any], earlier: tuple[dict[str, Any], ...]) -> None:
  name = stage["name"]
  if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or name in ("none", "previous"):
    raise UserError(
      f"{field}.name: {name!r} is not a name of letters, digits and _ . + - (nor none, previous)"
    )
  if name in [s["name"] for s in earlier]:
    raise UserError(f"{field}.name: {name!r} is the name of an earlier stage too; give each stage its own")


def _check_reference(field: str, stage: dict[str, Any], earlier: tuple[dict[str, Any], ...]) -> None:
  anchor, own = stage["reference"], [s["name"] for s in earlier if s["learner"] == stage["learner"]]
  if anchor["weighting"] not in reference.WEIGHTINGS:
    raise unknown(f"{field}.reference.weighting", anchor["weighting"], reference.WEIGHTINGS)
  if anchor["stage"] == "none":
    return
  if not own:
    raise UserError(
      f"{field}.reference.stage: {anchor['stage']!r}, but this is the first stage of {stage['learner']!r}; use 'none'"
    )
  if anchor["stage"] not in ("previous", *own):
    raise unknown(f"{field}.reference.stage", anchor["stage"], ("previous", "none", *own))
  if anchor["weighting"] != "constant" and not stage["teachers"]:
    raise UserError(
      f"{field}.reference.weighting: {anchor['weighting']!r} needs a teacher; name one, or use 'constant'"
    )


def _leaves(field: str, value: Any) -> Iterator[tuple[str, Any]]:
  """Every number, string and flag of a config with its field's name."""
  if isinstance(value, dict):
    for name, child in value.items():
      yield from _leaves(f"{field}.{name}", child)
  elif isinstance(value, tuple):
    for i, child in enumerate(value):
      yield from _leaves(f"{field}[{i}]", child)
  else:
    yield field, value
