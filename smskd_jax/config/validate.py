"""Validation of a resolved config: values, options of factories, agreement of fields.

Every check runs before training. A config with a mistake ends in one `UserError` that names the field, the value and
the fix.
"""

from collections.abc import Callable
import functools
import re
from typing import Any

from smskd_jax import losses, models
from smskd_jax.config import fields, schema
from smskd_jax.config.merge import drop_keys
from smskd_jax.data import mixing, views
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.losses import build_method
from smskd_jax.training import carry_over, optimizer, reference, schedule

Stage = dict[str, Any]  # resolved entry of a stage


def check(config: dict[str, Any]) -> None:
  """Validates a config that is merged with the defaults and whose stages have names.

  Raises:
    UserError: the first mistake found.
  """
  _check_values(config)
  for name, entry in config["networks"].items():
    factory = models.factory(entry["model"])
    _check_factory(f"config.networks.{name}", factory, entry, "model", "variables", num_classes=2)
  for i, stage in enumerate(config["stages"]):
    _check_factories(f"config.stages[{i}]", stage)
  _check_data(config)
  for i, stage in enumerate(config["stages"]):
    _check_stage(f"config.stages[{i}]", stage, config["stages"][:i], config)
  for name in dict.fromkeys(stage["network"] for stage in config["stages"]):
    _check_schedules(name, config["stages"])


def _check_values(config: dict[str, Any]) -> None:
  """Checks every field of the schema against its bounds and choices.

  No number may be infinite.
  """
  fields.check_finite("config", config)
  fields.check("config", schema.EXPERIMENT, config)
  for name, entry in config["networks"].items():
    fields.check(f"config.networks.{name}", schema.NETWORK, entry)
  for i, stage in enumerate(config["stages"]):
    fields.check(f"config.stages[{i}]", schema.STAGE, stage)
    for j, method in enumerate(stage["methods"]):
      fields.check(f"config.stages[{i}].methods[{j}]", schema.METHOD, method)


def _check_factories(path: str, stage: Stage) -> None:
  """Calls the factories of a stage, which check their options."""
  for j, method in enumerate(stage["methods"]):
    factory = losses.factory(method["name"])
    inner = _check_factory(f"{path}.methods[{j}]", factory, method, *losses.METHOD_FIELDS)
    for k, plugin in enumerate(method["plugins"]):
      plugin_path = f"{path}.methods[{j}].plugins[{k}]"
      wrap = functools.partial(losses.PLUGINS[plugin["name"]], inner)
      wrapped = _check_factory(plugin_path, wrap, plugin, *losses.PLUGIN_FIELDS)
      reads = _reads(inner)
      if wrapped.transforms_logits and reads != {"logits"}:
        raise UserError(
          f"{plugin_path}: {plugin['name']!r} changes logits, but {method['name']!r} reads "
          f"{', '.join(sorted(reads))}; it wraps methods that read logits alone: "
          f"{', '.join(x for x in losses.FAMILIES['response'] if _reads(losses.METHODS[x]()) == {'logits'})}"
        )
  _check_factory(
    f"{path}.mix", functools.partial(mixing.check_options, stage["mix"]["name"]), stage["mix"], "name"
  )
  rate = stage["optimizer"]["learning_rate"]
  make_schedule = functools.partial(schedule.make, stage["schedule"]["name"], rate, 1, stage["epochs"])
  make_optimizer = functools.partial(optimizer.make, stage["optimizer"]["name"], lambda count: rate)
  _check_factory(f"{path}.schedule", make_schedule, stage["schedule"], "name")
  _check_factory(
    f"{path}.optimizer", make_optimizer, stage["optimizer"], "name", "learning_rate", "base_batch_size"
  )


def _reads(method: losses.Method) -> frozenset[str]:
  """Outputs that a method reads of any network."""
  return method.reads | method.student_reads


def _check_factory(path: str, factory: Callable, entry: dict[str, Any], *own: str, **required: Any) -> Any:
  """Calls a factory with the options of an entry, all but the entry's `own` fields.

  Returns what the factory makes.
  """
  try:
    return factory(**drop_keys(entry, *own) | required)
  except (TypeError, ValueError) as error:  # TypeError: an item of a tuple, whose type the schema leaves open
    raise UserError(f"{path}: {error}") from error


def _check_data(config: dict[str, Any]) -> None:
  if not config["stages"]:
    raise UserError("config.stages: there are none; add at least one stage(...)")
  data = config["data"]
  if data["streamed"] and data["extra_tests"]:
    raise UserError(
      f"config.data.extra_tests: {data['extra_tests']!r} need images in memory, but config.data.streamed is True; "
      "leave extra_tests empty"
    )


def _check_stage(path: str, stage: Stage, earlier: tuple[Stage, ...], config: dict[str, Any]) -> None:
  """Checks that a stage finds its networks, trained teachers, images and reference."""
  _check_name(path, stage, earlier)
  _check_networks(path, stage, earlier, config["networks"])
  if stage["keep_checkpoint"] == "validation" and not config["data"]["validation"]:
    raise UserError(
      f"{path}.keep_checkpoint: 'validation', but there is no validation set; set config.data.validation, as to 0.1"
    )
  _check_images(path, stage, config["data"]["unlabeled"])
  if stage["teacher_cache"] != "off":
    _check_teacher_cache(f"{path}.teacher_cache: {stage['teacher_cache']!r}", stage, config["data"])
  _check_reference(path, stage, earlier)
  _check_carry_over(path, stage, earlier)


def _check_name(path: str, stage: Stage, earlier: tuple[Stage, ...]) -> None:
  name = stage["name"]
  if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or name in ("none", "previous"):
    raise UserError(
      f"{path}.name: {name!r} is not a name of letters, digits and _ . + - (nor none, previous)"
    )
  if name in [one["name"] for one in earlier]:
    raise UserError(f"{path}.name: {name!r} is the name of an earlier stage too; give each stage its own")


def _check_networks(path: str, stage: Stage, earlier: tuple[Stage, ...], networks: dict[str, Any]) -> None:
  for name in (stage["network"], *stage["teachers"]):
    if name not in networks:
      raise unknown_name_error(f"{path}: network", name, networks)
  for name in stage["teachers"]:
    if name not in [one["network"] for one in earlier] and not networks[name]["variables"]:
      raise UserError(
        f"{path}.teachers: {name!r} is not trained by then; put a stage with network={name!r} before this one, "
        f"or set config.networks.{name}.variables to a folder of its variables"
      )
  for method in stage["methods"]:
    if not stage["teachers"] and build_method(method).needs_teacher:
      raise UserError(f"{path}.teachers: empty, but {method['name']!r} needs a teacher")


def _check_images(path: str, stage: Stage, source: str) -> None:
  """Checks the views, and that nothing in a stage needs labels that its images lack."""
  if not stage["views"]:
    raise UserError(f"{path}.views: empty; name at least one, as ('crop_flip',)")
  for method in stage["methods"]:
    if len(stage["views"]) < build_method(method).min_views:
      raise UserError(
        f"{path}.views: {stage['views']}, but {method['name']!r} needs two or more, as ('crop_flip', 'autoaugment')"
      )
  only_unlabeled, unlabeled_batch = stage["images"] == "unlabeled", stage["unlabeled_batch_size"]
  if not (only_unlabeled or unlabeled_batch):
    return
  name = "images" if only_unlabeled else "unlabeled_batch_size"
  prefix = f"{path}.{name}: {stage[name]!r}"
  if not source:
    raise UserError(f"{prefix}, but config.data.unlabeled names no source")
  if only_unlabeled and unlabeled_batch:
    raise UserError(
      f"{path}.unlabeled_batch_size: {unlabeled_batch}, but {path}.images is 'unlabeled' already; use 0"
    )
  if only_unlabeled and stage["task_weight"]:
    raise UserError(f"{prefix}, which have no labels; set {path}.task_weight to 0")
  if stage["mix"]["name"] != "none":
    raise UserError(f"{prefix}, but {stage['mix']['name']!r} mixes labels; use 'none'")
  for method in stage["methods"]:
    if build_method(method).needs_labels:
      raise UserError(f"{prefix}, but {method['name']!r} needs the label of every image")


def _check_teacher_cache(prefix: str, stage: Stage, data: dict[str, Any]) -> None:
  """Checks that the teachers' outputs are a function of finitely many views, and small."""
  if data["streamed"]:
    raise UserError(f"{prefix}, but every step crops streamed images anew; use 'off'")
  if not stage["teachers"]:
    raise UserError(f"{prefix}, but the stage has no teachers; use 'off'")
  if len(set(stage["views"])) > 1 or stage["views"][0] not in views.ENUMERABLE_VIEWS:
    raise UserError(
      f"{prefix}, but of the views {stage['views']} there are too many; use "
      f"{' or '.join(views.ENUMERABLE_VIEWS)} alone, or 'off'"
    )
  required = {"images": "train", "unlabeled_batch_size": 0, "teacher_statistics": "running"}
  values = [
    ("mix", stage["mix"]["name"], "none"),
    *((name, stage[name], only) for name, only in required.items()),
  ]
  for name, value, only in values:
    if value != only:
      raise UserError(f"{prefix}, but {name} is {value!r}; use {only!r}, or no cache: 'off'")
  for method in stage["methods"]:
    built = build_method(method)
    if built.reads_segments:
      raise UserError(
        f"{prefix}, but {method['name']!r} or a plug-in runs parts of teachers, and a cache stores outputs; use 'off'"
      )
    if not built.cacheable:
      raise UserError(
        f"{prefix}, but {method['name']!r} reads the teachers' maps, which are not stored; use 'off'"
      )


def _check_reference(path: str, stage: Stage, earlier: tuple[Stage, ...]) -> None:
  options, network = stage["reference"], stage["network"]
  if options["stage"] == "none":
    return
  stages = [one["name"] for one in earlier if one["network"] == network]
  if conflict := reference.conflicting_option(reference.Reference(**drop_keys(options, "stage"))):
    raise UserError(f"{path}.reference.{conflict}")
  if not stages:
    raise UserError(
      f"{path}.reference.stage: {options['stage']!r}, but this is the first stage of {network!r}; use 'none'"
    )
  if options["stage"] not in ("previous", *stages):
    raise unknown_name_error(f"{path}.reference.stage", options["stage"], ("previous", "none", *stages))
  if options["weighting"] not in reference.TEACHER_FREE and not stage["teachers"]:
    raise UserError(
      f"{path}.reference.weighting: {options['weighting']!r} needs a teacher; name one, or use 'constant'"
    )


def _check_carry_over(path: str, stage: Stage, earlier: tuple[Stage, ...]) -> None:
  """Checks that the state of the previous stage fits."""
  mode = stage["carry_over"]
  if mode == carry_over.VARIABLES:
    return
  prefix = f"{path}.carry_over: {mode!r}"
  previous = next((one for one in reversed(earlier) if one["network"] == stage["network"]), None)
  if previous is None or stage["init"] != "previous":
    raise UserError(f"{prefix}, but the stage continues no other; use {carry_over.VARIABLES!r}")
  if previous["keep_checkpoint"] != "last" or previous["ema_decay"]:
    name = "ema_decay" if previous["ema_decay"] else "keep_checkpoint"
    raise UserError(
      f"{prefix}, but the previous stage ends with other variables than those of its last step ({name} is "
      f"{previous[name]!r}); use {carry_over.VARIABLES!r}"
    )
  if mode == carry_over.ALL and stage["reference"]["stage"] != "none":
    raise UserError(
      f"{prefix}, but the stage has a reference; a stage that continues another has the same objective"
    )
  for name, value, expected in _carried_fields(stage, previous, mode):
    if value != expected:
      raise UserError(
        f"{prefix}, but {name} is {value!r}, and {expected!r} in the previous stage; make them equal"
      )


def _carried_fields(stage: Stage, previous: Stage, mode: str) -> list[tuple[str, Any, Any]]:
  """(field, value, value in the previous stage) of all fields that have to be equal."""
  # The structure of the optimizer's state depends on three fields; one run of an optimizer has equal options.
  names = tuple(stage["optimizer"]) if mode == carry_over.ALL else ("name", "accumulate_steps", "clip_norm")
  found = [(f"optimizer.{name}", stage["optimizer"][name], previous["optimizer"].get(name)) for name in names]
  if mode == carry_over.ALL:
    free = ("name", "epochs", "carry_over", "schedule", "optimizer", "reference")
    found += [(name, value, previous[name]) for name, value in stage.items() if name not in free]
  return found


def _check_schedules(network: str, stages: tuple[Stage, ...]) -> None:
  """Checks that stages that share a schedule follow each other and reach its end."""
  position, shared = (
    0,
    dict[str, Any](),
  )  # epochs used of the shared schedule (0: there is none), and its settings
  for i, stage in enumerate(stages):
    if stage["network"] != network:
      continue
    path, own = f"config.stages[{i}].schedule", stage["schedule"]
    settings = drop_keys(own, "start_epoch") | {"learning_rate": stage["optimizer"]["learning_rate"]}
    if position and (own["start_epoch"] == 0 or stage["init"] != "previous"):
      break
    if own["start_epoch"] != position:
      raise UserError(
        f"{path}.start_epoch: {own['start_epoch']}, but the stages of {network!r} before this one end at epoch "
        f"{position} of a shared schedule; use {position}"
      )
    for name in settings if position else ():
      if settings[name] != shared.get(name):
        raise UserError(
          f"{path}: {name} is {settings[name]!r}, and {shared.get(name)!r} in the previous stage, whose schedule this "
          "stage continues; make them equal"
        )
    shared, position = settings, position + stage["epochs"] if own["total_epochs"] else 0
    position = 0 if position >= own["total_epochs"] else position
  if position:
    raise UserError(
      f"config.stages: the stages of {network!r} use {position} of the {shared['total_epochs']} epochs of their shared "
      "schedule; add a stage that continues the schedule, or set total_epochs to the sum of their epochs"
    )
