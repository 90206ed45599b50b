"""SMSKD's protocol as stage lists: one method per stage, with a reference.

The reference is the previous student.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657, section 4.1. The recipe is that of "Contrastive Representation Distillation" (Tian,
Krishnan, Isola, ICLR 2020, https://arxiv.org/abs/1910.10699) and its public code: SGD with momentum 0.9 and weight
decay 5e-4, batch 64, learning rate 0.05 (MobileNetV2 and ShuffleNets 0.01), reduced by 0.1 after 150, 180 and 210 of
240 epochs; methods with the weights of that code (`smskd_jax.recipes.literature`).

Three protocols divide the epochs among the stages:

paper   Two stages share one schedule, and the first ends at the first drop of the rate (`transition`, 150 of 240). The
        third and each further stage has as many epochs as the second (90); its rate begins at a tenth of the first
        stage's and drops after each third.
equal   The stages have equal numbers of epochs, and a schedule each.
full    Each stage has all epochs and a schedule of its own.

All numbers of epochs scale with `epochs`: with 24 epochs the rate drops after 15, 18 and 21.

Choices where the paper says nothing: in joint training (`mode=joint`, the paper's DLA) cross-entropy has the smallest
of the methods' own weights; the temperatures of the reference term and of TCP are 1; the optimizer is initialised again
at a change of stage (`carry_over=optimizer` keeps its momentum).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import network, stage
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.losses import build_method
from smskd_jax.recipes import literature
from smskd_jax.recipes.common import split_names

PAPER_EPOCHS = 240  # milestones of the paper and warm-ups of literature.csv refer to these
MILESTONES = (150 / PAPER_EPOCHS, 180 / PAPER_EPOCHS, 210 / PAPER_EPOCHS)
PROTOCOLS = ("paper", "equal", "full")
MODES = ("stages", "joint")

# Arguments of the student's stages with defaults. The config file adds `epochs`, the models `teacher` and `student`,
# and `nominal_epochs` if its published warm-ups refer to another number of epochs than 240.
STAGE_ARGUMENTS: dict[str, Any] = {
  "protocol": "paper",
  "transition": 0,  # first epoch of the second stage, for protocol paper; 0: the first drop of the rate
  "lambda_r": 0.5,
  "weighting": "reference_tcp",  # a name of `training.reference.WEIGHTINGS`
  "temperature": 1.0,  # of the reference term
  "tcp_temperature": 1.0,
  "carry_over": "variables",
}
ARGUMENTS: dict[str, Any] = STAGE_ARGUMENTS | {
  "dataset": "cifar100",
  "folder": "",
  "image_size": 0,
  "validation": 0.0,
  "teacher": "resnet56",
  "teacher_variables": "",  # folder of the trained teacher; '': the teacher is trained first
  "teacher_epochs": 0,  # 0: as `epochs`
  "student": "resnet20",
  "epochs": PAPER_EPOCHS,
  "max_images": 0,  # of the student; 0: all
  "batch_size": 64,
  "learning_rate": 0.0,  # 0: the published rate of each network
  "optimizer": "sgd",
  "padding": -1,  # of crops; -1: 4, and 0 (flips alone) on Tiny-ImageNet
  "num_views": 0,  # number of different crops and flips of each image; 0: all
  "teacher_cache": "off",  # 'float32' or 'float16', for stages whose methods read no feature maps
  "evaluate_every_epochs": 1,
}


class Span(NamedTuple):
  """Epochs of a stage and their position in a schedule."""

  epochs: int
  start: int = 0
  total: int = 0  # length of a schedule that several stages share; 0: the stage has its own schedule
  restart: bool = False  # True: a tenth of the learning rate, with drops after each third


def training_recipe(args: ConfigDict, model: str, optimizer: str = "sgd") -> dict[str, Any]:
  """Fields of every stage that trains a network of a model."""
  default_padding = 0 if args.dataset == "tiny_imagenet" else 4
  padding = args.padding if args.padding >= 0 else default_padding
  return {
    "batch_size": args.batch_size,
    "optimizer": {
      "name": optimizer,
      "learning_rate": args.learning_rate or literature.learning_rate(model),
    },
    "schedule": {"name": "multistep", "milestones": MILESTONES},
    "augment": {"crop_flip": {"padding": padding, "flip": True, "num_views": args.num_views}},
  }


def data_fields(args: ConfigDict) -> dict[str, Any]:
  """Fields of section `data` of an experiment."""
  return {
    "source": args.dataset,
    "folder": args.folder,
    "image_size": args.image_size,
    "validation": args.validation,
  }


def teacher_stages(args: ConfigDict, fields: Mapping[str, Any] | None = None) -> list[ConfigDict]:
  """Stage that trains the teacher; empty if its variables are given.

  Args:
    args: `ARGUMENTS`.
    fields: recipe. None: `training_recipe` with SGD.
  """
  if args.teacher_variables:
    return []
  fields = fields or training_recipe(args, args.teacher)
  return [stage("teacher", epochs=args.teacher_epochs or args.epochs, **fields)]


def student_network(args: ConfigDict, methods: Sequence[str]) -> ConfigDict:
  """The student, wrapped into another network if its methods need one (SimKD, DML)."""
  if tuple(methods) == ("simkd",):
    return network("simkd", body=args.student, teacher=args.teacher)
  if "dml" in methods:
    return network("cohort", first=args.student, peer=args.student)
  return network(args.student)


def parse_methods(field: str, text: str) -> tuple[str, ...]:
  """Parses names of methods that are joined by +.

  Args:
    field: name of the config argument, for messages.
    text: its value.

  Raises:
    UserError: there is no name, or one that is not in `literature.recipe_names`.
  """
  names = tuple(split_names(text))
  if not names:
    raise UserError(f"config argument {field}: there are none; join some by +, as at+kd")
  for name in names:
    if name not in literature.recipe_names():
      raise unknown_name_error(f"config argument {field}", name, literature.recipe_names())
  return names


def parse_method(field: str, text: str) -> str:
  """Parses the name of a single method.

  Raises:
    UserError: as `parse_methods`, or there are several names.
  """
  first, *others = parse_methods(field, text)
  if others:
    raise UserError(f"config argument {field}: {text!r} must be one method, as kd")
  return first


def transition_epoch(args: ConfigDict, milestones: Sequence[float] = MILESTONES) -> int:
  """First epoch of the second stage, for protocol paper.

  Args:
    args: `STAGE_ARGUMENTS` and `epochs`.
    milestones: drops of the learning rate, as fractions of the epochs.

  Raises:
    UserError: one of the two stages would have no epoch.
  """
  at = args.transition or round(milestones[0] * args.epochs)
  if not 0 < at < args.epochs:
    raise UserError(
      f"config argument transition: {at} is not inside the {args.epochs} epochs; choose one from 1 to {args.epochs - 1}"
    )
  return at


def stage_spans(args: ConfigDict, count: int, milestones: Sequence[float] = MILESTONES) -> list[Span]:
  """Epochs of `count` stages by the protocol.

  Raises:
    UserError: an unknown protocol, fewer epochs than stages, or a transition outside the epochs.
  """
  if args.protocol not in PROTOCOLS:
    raise unknown_name_error("config argument protocol", args.protocol, PROTOCOLS)
  if args.transition and args.protocol != "paper":
    raise UserError(
      f"config argument transition: {args.transition}, but protocol {args.protocol!r} has none; use protocol=paper"
    )
  if args.protocol == "full" or count == 1:
    return [Span(args.epochs)] * count
  if args.protocol == "equal":
    return [Span(epochs) for epochs in divide_epochs(args.epochs, count)]
  at = transition_epoch(args, milestones)
  further = Span(round((1 - milestones[0]) * args.epochs), restart=True)
  if count > 2 and further.epochs < 3:
    raise UserError(
      f"config argument epochs: {args.epochs} leave {further.epochs} for each stage after the second; give 8 or more"
    )
  return [
    Span(at, 0, args.epochs),
    Span(args.epochs - at, at, args.epochs),
    *[further] * (count - 2),
  ]


def divide_epochs(epochs: int, count: int) -> list[int]:
  """Divides epochs among `count` stages; the first stages get the remainder.

  Raises:
    UserError: there are fewer epochs than stages.
  """
  if epochs < count:
    raise UserError(f"config argument epochs: {epochs} cannot be shared by {count} stages; give more")
  quotient, remainder = divmod(epochs, count)
  return [quotient + (i < remainder) for i in range(count)]


def student_stage(
  args: ConfigDict, methods: Sequence[str], span: Span, fields: Mapping[str, Any], **overrides: Any
) -> ConfigDict:
  """Stage of the student.

  Args:
    args: `ARGUMENTS`.
    methods: names in `literature.recipe_names`, trained jointly; empty: labels only.
    span: epochs of the stage.
    fields: recipe, with `optimizer` and `schedule`.
    **overrides: further fields, which override all others.
  """
  recipes = [
    literature.published_recipe(name, args.teacher, args.student, field="config argument stages")
    for name in methods
  ]
  terms = [recipe.term for recipe in recipes]
  for term in terms:
    term.warmup_epochs *= args.epochs / args.get("nominal_epochs", PAPER_EPOCHS)
  is_cacheable = bool(terms) and all(build_method(term).cacheable for term in terms)
  optimizer, schedule = dict(fields["optimizer"]), dict(fields["schedule"])
  if span.restart:
    optimizer["learning_rate"] *= 0.1
    schedule["milestones"] = (1 / 3, 2 / 3)
  return stage(
    "student",
    **{
      "teachers": (args.get("teacher_network", "teacher"),) if terms else (),
      "methods": tuple(terms),
      "task_weight": min((recipe.task_weight for recipe in recipes), default=1.0),
      "epochs": span.epochs,
      "max_images": args.get("max_images", 0),
      "teacher_cache": args.get("teacher_cache", "off") if is_cacheable else "off",
      **fields,
      "optimizer": optimizer,
      "schedule": schedule | {"start_epoch": span.start, "total_epochs": span.total},
      **overrides,
    },
  )


def reference_fields(args: ConfigDict, **options: Any) -> dict[str, Any]:
  """Fields of section `reference` of a stage after the first."""
  return {
    "stage": "previous",
    "weight": args.lambda_r,
    "weighting": args.weighting,
    "temperature": args.temperature,
    "tcp_temperature": args.tcp_temperature,
  } | options


def sequential_stages(
  args: ConfigDict,
  methods: Sequence[str],
  fields: Mapping[str, Any],
  reference: Mapping[str, Any] | None = None,
) -> list[ConfigDict]:
  """SMSKD: one method per stage, with a reference from the second stage on.

  The reference is the student after the previous stage.

  Args:
    args: `STAGE_ARGUMENTS`, and those that the config file adds.
    methods: names in order.
    fields: recipe of every stage.
    reference: options of the reference that override the arguments; {'stage': 'none'}: stages without a reference.

  Raises:
    UserError: as `stage_spans`.
  """
  milestones = fields["schedule"].get("milestones", MILESTONES)
  stages = []
  for i, (name, span) in enumerate(zip(methods, stage_spans(args, len(methods), milestones), strict=True)):
    later = (
      {"reference": reference_fields(args, **reference or {}), "carry_over": args.carry_over} if i else {}
    )
    stages.append(student_stage(args, (name,), span, fields, name=f"{i + 1}_{name}", **later))
  return stages


def student_stages(
  args: ConfigDict, methods: Sequence[str], fields: Mapping[str, Any], mode: str
) -> list[ConfigDict]:
  """Stages of the student by mode: `sequential_stages` or `joint_stages`.

  Modes are 'stages' and 'joint'.

  Raises:
    UserError: an unknown mode, or as `stage_spans`.
  """
  if mode not in MODES:
    raise unknown_name_error("config argument mode", mode, MODES)
  return (joint_stages if mode == "joint" else sequential_stages)(args, methods, fields)


def joint_stages(args: ConfigDict, methods: Sequence[str], fields: Mapping[str, Any]) -> list[ConfigDict]:
  """All methods jointly for all epochs: the paper's baseline DLA."""
  return [student_stage(args, methods, Span(args.epochs), fields, name="+".join(methods))]


def single_method_stages(
  args: ConfigDict, method: str, fields: Mapping[str, Any], cuts: Sequence[int] = ()
) -> list[ConfigDict]:
  """One method for all epochs, in pieces that other variants can share.

  The pieces together equal a single stage of all epochs, bit for bit.

  Args:
    args: `STAGE_ARGUMENTS`, and those that the config file adds.
    method: name of the method.
    fields: recipe.
    cuts: epochs at which a piece ends, ascending, without 0 and `epochs`.
  """
  stages = []
  for begin, end in zip([0, *cuts], [*cuts, args.epochs], strict=True):
    span = Span(end - begin, begin, args.epochs if cuts else 0)
    name = f"{method}_to_{end}" if cuts else method
    continuation = {"carry_over": "all"} if begin else {}
    stages.append(student_stage(args, (method,), span, fields, name=name, **continuation))
  return stages
