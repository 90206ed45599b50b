"""Mistakes in the values of a resolved config: numbers out of range, and options that a factory refuses."""

from collections.abc import Callable, Iterator
import functools
import math
from typing import Any

from smskd_jax import losses, models
from smskd_jax.config.merge import drop_keys
from smskd_jax.data import mixing
from smskd_jax.data.resize import MAX_IMAGE_SIZE
from smskd_jax.errors import UserError
from smskd_jax.losses import entries
from smskd_jax.training import optimizer, schedule

# Field of a config -> the smallest value allowed and whether the value may be it.
_AT_LEAST = {
  "base_batch_size": 0,
  "seed": 0,
  "split_seed": 0,
  "image_size": 0,
  "max_images": 0,
  "num_forgetting_images": 0,
  "feature_images": 0,
  "alternate_epochs": 0,
  "probe_every_steps": 0,
  "steps_per_call": 0,
  "start_epoch": 0,
  "total_epochs": 0,
  "num_workers": 0,
  "weight": 0,
  "task_weight": 0,
  "warmup_epochs": 0,
  "clip_norm": 0,
  "unlabeled_batch_size": 0,
  "num_classes": 0,
  "padding": 0,
}
# Field of a config -> the largest value allowed: larger ones would make arrays and programs that nobody needs.
_AT_MOST = {
  "seed": 2**32 - 1,  # what a key of JAX and NumPy's RandomState tell apart
  "split_seed": 2**32 - 1,
  "image_size": MAX_IMAGE_SIZE,
  "epochs": 10**6,
  "alternate_epochs": 10**6,
  "accumulate_steps": 10**6,
  "batch_size": 10**6,
  "unlabeled_batch_size": 10**6,
  "calibration_bins": 10**4,
  "steps_per_call": 10**4,
  "num_workers": 10**3,
}
_PARTS = ("min_crop_area", "center_crop_fraction")  # greater than 0 and at most 1
_SHARES = ("validation", "label_smoothing", "ema_decay")  # at least 0 and less than 1
_ABOVE = {
  "epochs": 0,
  "batch_size": 0,
  "temperature": 0,
  "tcp_temperature": 0,
  "learning_rate": 0,
  "every_epochs": 0,
  "every_steps": 0,
  "log_every_steps": 0,
  "max_to_keep": 0,
  "accumulate_steps": 0,
  "calibration_bins": 0,
}


def check_values(config: dict[str, Any]) -> None:
  """Checks every value by itself: numbers and their ranges, and what the factories say of their options.

  Raises:
    UserError: the first value out of range, by its field.
  """
  for field, value in _leaves("config", config):
    check_value(field, value, field.rpartition(".")[2])
  for name, entry in config["networks"].items():
    field, factory = f"config.networks.{name}", models.factory(entry["model"])
    _check_factory(field, factory, entry, "model", "variables", num_classes=2)
  for i, stage in enumerate(config["stages"]):
    _check_stage_factories(f"config.stages[{i}]", stage)


def check_value(field: str, value: Any, name: str) -> None:
  """Checks a value by the range of the numbers of its name.

  Raises:
    UserError: it is out of range.
  """
  if isinstance(value, float) and not math.isfinite(value):
    raise UserError(f"{field}: {value} is not a finite number")
  if name in _AT_LEAST and not value >= _AT_LEAST[name]:
    raise UserError(f"{field}: {value} is too small; it must be at least {_AT_LEAST[name]}")
  if name in _AT_MOST and value > _AT_MOST[name]:
    raise UserError(f"{field}: {value} is too large; it must be at most {_AT_MOST[name]}")
  if name in _ABOVE and not value > _ABOVE[name]:
    raise UserError(f"{field}: {value} is too small; it must be greater than {_ABOVE[name]}")
  if name in _SHARES and not 0 <= value < 1:
    raise UserError(f"{field}: {value} is not in [0, 1)")
  if name in _PARTS and not 0 < value <= 1:
    raise UserError(f"{field}: {value} is not in (0, 1]")


def _check_stage_factories(field: str, stage: dict[str, Any]) -> None:
  for j, method in enumerate(stage["methods"]):
    factory = entries.factory(method["name"])
    bare = _check_factory(f"{field}.methods[{j}]", factory, method, *entries.TERM_FIELDS)
    for k, plugin in enumerate(method["plugins"]):
      wrap = functools.partial(losses.PLUGINS[plugin["name"]], bare)
      wrapped = _check_factory(f"{field}.methods[{j}].plugins[{k}]", wrap, plugin, *entries.PLUGIN_FIELDS)
      if wrapped.transforms_logits and bare.reads | bare.student_reads != {"logits"}:
        raise UserError(
          f"{field}.methods[{j}].plugins[{k}]: {plugin['name']!r} changes logits, but {method['name']!r} reads "
          f"{', '.join(sorted(bare.reads | bare.student_reads))}; it wraps methods that read logits alone: "
          f"{', '.join(losses.FAMILIES['response'])}"
        )
  _check_factory(
    f"{field}.mix", functools.partial(mixing.check_options, stage["mix"]["name"]), stage["mix"], "name"
  )
  of_rate, optimiser = stage["schedule"], stage["optimizer"]
  rate = optimiser["learning_rate"]
  of_schedule = functools.partial(schedule.make, of_rate["name"], rate, 1, stage["epochs"])
  of_optimizer = functools.partial(optimizer.make, optimiser["name"], lambda count: rate)
  _check_factory(f"{field}.schedule", of_schedule, of_rate, "name")
  _check_factory(f"{field}.optimizer", of_optimizer, optimiser, "name", "learning_rate", "base_batch_size")


def _check_factory(field: str, factory: Callable, entry: dict[str, Any], *ours: str, **needed: Any) -> Any:
  try:
    return factory(**drop_keys(entry, *ours) | needed)
  except (TypeError, ValueError) as error:  # the former: of an item of a tuple, whose type nobody has checked
    raise UserError(f"{field}: {error}") from error


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
