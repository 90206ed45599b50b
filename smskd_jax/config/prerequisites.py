"""Mistakes in the stages of a resolved config: what needs what is not there, and what does not go together."""

import re
from typing import Any

from smskd_jax.config import merge
from smskd_jax.data import enumerable_views
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.losses.entries import make_method
from smskd_jax.training import carry_over, reference, weighting

# Field of a stage -> what it may be.
_CHOICES = {
  "init": ("previous", "scratch"),
  "images": ("train", "unlabeled"),
  "trainable": ("all", "head"),
  "teacher_statistics": ("running", "batch"),
  "keep_checkpoint": ("last", "validation"),
  "teacher_cache": ("off", "float32", "float16"),
  "carry_over": carry_over.MODES,
}


def check(config: dict[str, Any]) -> None:
  """Checks that each stage finds what it reads: its networks, trained teachers, an earlier stage to be anchored by.

  Raises:
    UserError: the first stage that does not.
  """
  if not config["stages"]:
    raise UserError("config.stages: there are none; add at least one stage(...)")
  if config["data"]["streamed"] and config["data"]["extra_tests"]:
    raise UserError(
      f"config.data.extra_tests: {config['data']['extra_tests']!r} are made of images in memory, and these are "
      "streamed; leave it empty"
    )
  for i, stage in enumerate(config["stages"]):
    field, earlier = f"config.stages[{i}]", config["stages"][:i]
    _check_name(field, stage, earlier)
    for name in (stage["network"], *stage["teachers"]):
      if name not in config["networks"]:
        raise unknown_name_error(f"{field}: network", name, config["networks"])
    for name in stage["teachers"]:
      if name not in [s["network"] for s in earlier] and not config["networks"][name]["variables"]:
        raise UserError(
          f"{field}.teachers: {name!r} is not trained by then; put a stage with network={name!r} before this one, "
          f"or say in config.networks.{name}.variables where its variables are"
        )
    for method in stage["methods"]:
      if not stage["teachers"] and make_method(method).needs_teacher:
        raise UserError(f"{field}.teachers: empty, but {method['name']!r} needs a teacher")
    for name, choices in _CHOICES.items():
      if stage[name] not in choices:
        raise unknown_name_error(f"{field}.{name}", stage[name], choices)
    if stage["keep_checkpoint"] == "validation" and not config["data"]["validation"]:
      raise UserError(
        f"{field}.keep_checkpoint: 'validation', but nothing is held out; set config.data.validation, as to 0.1"
      )
    _check_images(field, stage, config["data"]["unlabeled"])
    if stage["teacher_cache"] != "off" and config["data"]["streamed"]:
      raise UserError(
        f"{field}.teacher_cache: {stage['teacher_cache']!r}, but of streamed images every step sees other parts; use "
        "'off'"
      )
    if stage["teacher_cache"] != "off":
      _check_cache(f"{field}.teacher_cache: {stage['teacher_cache']!r}", stage)
    _check_reference(field, stage, earlier)
    _check_carry_over(field, stage, earlier)
  for name in dict.fromkeys(stage["network"] for stage in config["stages"]):
    _check_schedules(name, config["stages"])


def _check_name(field: str, stage: dict[str, Any], earlier: tuple[dict[str, Any], ...]) -> None:
  name = stage["name"]
  if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or name in ("none", "previous"):
    raise UserError(
      f"{field}.name: {name!r} is not a name of letters, digits and _ . + - (nor none, previous)"
    )
  if name in [s["name"] for s in earlier]:
    raise UserError(f"{field}.name: {name!r} is the name of an earlier stage too; give each stage its own")


def _check_images(field: str, stage: dict[str, Any], source: str) -> None:
  """What a stage may do depends on whether its images have labels."""
  alone, beside = stage["images"] == "unlabeled", stage["unlabeled_batch_size"]
  if not stage["views"]:
    raise UserError(f"{field}.views: empty; name at least one, as ('crop_flip',)")
  for method in stage["methods"]:
    if len(stage["views"]) < make_method(method).min_views:
      raise UserError(
        f"{field}.views: {stage['views']}, but {method['name']!r} needs two or more, as ('crop_flip', 'autoaugment')"
      )
  if not (alone or beside):
    return
  name = "images" if alone else "unlabeled_batch_size"
  said = f"{field}.{name}: {stage[name]!r}"
  if not source:
    raise UserError(f"{said}, but config.data.unlabeled names no source")
  if alone and beside:
    raise UserError(
      f"{field}.unlabeled_batch_size: {beside}, but config.images is 'unlabeled' already; use 0"
    )
  if alone and stage["task_weight"]:
    raise UserError(f"{said}, which have no labels; set {field}.task_weight to 0")
  if stage["mix"]["name"] != "none":
    raise UserError(f"{said}, but {stage['mix']['name']!r} mixes labels; use 'none'")
  for method in stage["methods"]:
    if make_method(method).needs_labels:
      raise UserError(f"{said}, but {method['name']!r} needs the label of every image")


def _check_cache(prefix: str, stage: dict[str, Any]) -> None:
  """What the teachers say can be kept where it is a function of finitely many views, and little."""
  if not stage["teachers"]:
    raise UserError(f"{prefix}, but the stage has no teachers; use 'off'")
  if len(set(stage["views"])) > 1 or stage["views"][0] not in enumerable_views.ENUMERABLE_VIEWS:
    raise UserError(
      f"{prefix}, but of the views {stage['views']} there are too many; use "
      f"{' or '.join(enumerable_views.ENUMERABLE_VIEWS)} alone, or 'off'"
    )
  needed = {"images": "train", "unlabeled_batch_size": 0, "teacher_statistics": "running"}
  for name, given, only in (
    ("mix", stage["mix"]["name"], "none"),
    *((name, stage[name], only) for name, only in needed.items()),
  ):
    if given != only:
      raise UserError(f"{prefix}, but {name} is {given!r}; use {only!r}, or no cache: 'off'")
  for method in stage["methods"]:
    if not make_method(method).cacheable:
      raise UserError(
        f"{prefix}, but {method['name']!r} reads the teachers' maps, which are not kept; use 'off'"
      )


def _check_reference(field: str, stage: dict[str, Any], earlier: tuple[dict[str, Any], ...]) -> None:
  anchor, own = stage["reference"], [s["name"] for s in earlier if s["network"] == stage["network"]]
  if anchor["weighting"] in weighting.RENAMED:
    raise UserError(
      f"{field}.reference.weighting: {anchor['weighting']!r} is now {weighting.RENAMED[anchor['weighting']]!r}"
    )
  for name, choices in (("weighting", tuple(weighting.WEIGHTINGS)), ("divergence", reference.DIVERGENCES)):
    if anchor[name] not in choices:
      raise unknown_name_error(f"{field}.reference.{name}", anchor[name], choices)
  if anchor["stage"] == "none":
    return
  if wrong := reference.conflicting_option(reference.Reference(**merge.drop_keys(anchor, "stage"))):
    raise UserError(f"{field}.reference.{wrong}")
  if not own:
    raise UserError(
      f"{field}.reference.stage: {anchor['stage']!r}, but this is the first stage of {stage['network']!r}; use 'none'"
    )
  if anchor["stage"] not in ("previous", *own):
    raise unknown_name_error(f"{field}.reference.stage", anchor["stage"], ("previous", "none", *own))
  if anchor["weighting"] not in weighting.TEACHER_FREE and not stage["teachers"]:
    raise UserError(
      f"{field}.reference.weighting: {anchor['weighting']!r} needs a teacher; name one, or use 'constant'"
    )


def _check_carry_over(field: str, stage: dict[str, Any], earlier: tuple[dict[str, Any], ...]) -> None:
  """State beside variables is that of a last step, of a stage that is alike."""
  how = stage["carry_over"]
  if how == carry_over.VARIABLES:
    return
  said = f"{field}.carry_over: {how!r}"
  before = next((s for s in reversed(earlier) if s["network"] == stage["network"]), None)
  if before is None or stage["init"] != "previous":
    raise UserError(f"{said}, but the stage starts anew; use {carry_over.VARIABLES!r}")
  if before["keep_checkpoint"] != "last" or before["ema_decay"]:
    name = "ema_decay" if before["ema_decay"] else "keep_checkpoint"
    raise UserError(
      f"{said}, but the stage before ends with other variables than its last step's ({name} is {before[name]!r}); "
      f"use {carry_over.VARIABLES!r}"
    )
  # On these the form of the state depends; one run of an optimiser has all of its options.
  alike = tuple(stage["optimizer"]) if how == carry_over.ALL else ("name", "accumulate_steps", "clip_norm")
  fields = [("optimizer", name, stage["optimizer"][name], before["optimizer"].get(name)) for name in alike]
  if how == carry_over.ALL:
    if stage["reference"]["stage"] != "none":
      raise UserError(
        f"{said}, but the stage has a reference; a stage that continues another has the same objective"
      )
    free = ("name", "epochs", "carry_over", "schedule", "optimizer", "reference")
    fields += [("", name, value, before[name]) for name, value in stage.items() if name not in free]
  for section, name, here, there in fields:
    if here != there:
      path = f"{section}.{name}".lstrip(".")
      raise UserError(f"{said}, but {path} is {here!r}, and {there!r} in the stage before; make them equal")


def _check_schedules(learner: str, stages: tuple[dict[str, Any], ...]) -> None:
  """Stages that share a schedule follow each other in it, and reach its end."""
  at, shared = (
    0,
    dict[str, Any](),
  )  # epochs used of a shared schedule (0: none is under way), and its settings
  for i, stage in enumerate(stages):
    if stage["network"] != learner:
      continue
    field, own = f"config.stages[{i}].schedule", stage["schedule"]
    settings = merge.drop_keys(own, "start_epoch") | {"learning_rate": stage["optimizer"]["learning_rate"]}
    if at and (own["start_epoch"] == 0 or stage["init"] != "previous"):
      break
    if own["start_epoch"] != at:
      raise UserError(
        f"{field}.start_epoch: {own['start_epoch']}, but the stages of {learner!r} before this one end at epoch {at} "
        f"of a shared schedule; use {at}"
      )
    different = [name for name, value in settings.items() if at and value != shared.get(name)]
    if different:
      name = different[0]
      raise UserError(
        f"{field}: {name} is {settings[name]!r}, and {shared.get(name)!r} in the stage before, whose schedule this one "
        "goes on with; make them equal"
      )
    shared, at = settings, at + stage["epochs"] if own["total_epochs"] else 0
    at = 0 if at >= own["total_epochs"] else at
  if at:
    raise UserError(
      f"config.stages: the stages of {learner!r} use {at} of the {shared['total_epochs']} epochs of their shared "
      "schedule; add a stage that goes on from there, or set total_epochs to the sum of their epochs"
    )
