"""A student's stages with the weights that the methods' authors published: what the configs of single runs share."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import literature
from smskd_jax.config import stage
from smskd_jax.errors import unknown
from smskd_jax.studies.recipe import shares

# What `stages` reads of a config file's arguments, with defaults: they are of the form that `config.parse_arg` takes.
ARGUMENTS: dict[str, Any] = {
  "stages": "fitnet+kd",  # names of `literature.names()`, joined by +
  "budget": "total",  # the stages share `epochs`; or 'full': each has all of them
  "mode": "sequential",  # SMSKD; or 'joint', one stage with all methods at once: its ablation
  "reference_weight": 1.0,
}


def stages(args: ConfigDict, recipe: Mapping[str, Any]) -> list[ConfigDict]:
  """The student's stages: one a method, each anchored by the one before, or all methods in one.

  Args:
    args: `ARGUMENTS`, `epochs` of the student, and the models' names `teacher` and `student`.
    recipe: further fields of every stage.

  Raises:
    UserError: an unknown name, or fewer epochs than stages that share them.
  """
  names = args.stages.split("+")
  found = [
    literature.recipe(name, args.teacher, args.student, field="config argument stages") for name in names
  ]
  if args.mode == "joint":
    terms, task_weights, _ = zip(*found, strict=True)
    return [_stage(terms, min(task_weights), args.epochs, recipe)]
  if args.mode != "sequential":
    raise unknown("config argument mode", args.mode, ("sequential", "joint"))
  if args.budget not in ("total", "full"):
    raise unknown("config argument budget", args.budget, ("total", "full"))
  epochs = [args.epochs] * len(names) if args.budget == "full" else shares(args.epochs, len(names))
  return [
    _stage(
      (one.term,),
      one.task_weight,
      epochs[i],
      recipe,
      name=f"student_{names[i]}" if names.index(names[i]) == i else "",
      reference={"stage": "previous", "weight": args.reference_weight} if i else {},
    )
    for i, one in enumerate(found)
  ]


def _stage(
  terms: Sequence[ConfigDict], task_weight: float, epochs: int, recipe: Mapping[str, Any], **fields: Any
) -> ConfigDict:
  return stage(
    "student",
    teachers=("teacher",),
    methods=tuple(terms),
    task_weight=task_weight,
    epochs=epochs,
    **recipe,
    **fields,
  )
