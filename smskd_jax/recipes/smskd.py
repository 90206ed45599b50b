"""SMSKD's protocol as stage lists: one method a stage, each anchored by the student of the stage before.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657, section 4.1. The recipe is that of "Contrastive Representation Distillation" (Tian,
Krishnan, Isola, ICLR 2020, https://arxiv.org/abs/1910.10699) and its public code: SGD with momentum 0.9 and decay 5e-4,
batch 64, rate 0.05 (MobileNetV2 and ShuffleNets 0.01) times 0.1 after 150, 180 and 210 of 240 epochs; methods with the
weights of that code (`smskd_jax.recipes.literature`).

Three protocols divide the epochs among the stages:

paper   two stages share one schedule, and the first ends at its first drop (`transition`, 150 of 240). A third and each
        further stage has as many epochs as the second (90), begins at a tenth of the rate and drops after each third
equal   the stages share the epochs evenly; each has a schedule of its own
full    each stage has all epochs and a schedule of its own

All numbers of epochs scale with `epochs`: of 24 epochs the drops come after 15, 18 and 21.

Open in the paper, and our choice: cross-entropy beside several methods at once (`mode=joint`, the paper's DLA) has the
smallest of their own weights; the temperatures of the reference term and of TCP are 1; the optimiser starts anew at a
change of stage (`carry_over=optimizer` keeps its momentum).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import network, stage
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.losses.entries import make_method
from smskd_jax.recipes import literature

PAPER_EPOCHS = 240  # of the paper, in which its milestones and the warm-ups of literature.csv are counted
MILESTONES = (150 / PAPER_EPOCHS, 180 / PAPER_EPOCHS, 210 / PAPER_EPOCHS)
PROTOCOLS = ("paper", "equal", "full")
MODES = ("stages", "joint")

# Arguments of the student's stages, with defaults. `epochs` and the models' names `teacher` and `student` are the
# config file's own, and so is `nominal_epochs` where its published warm-ups are not counted in 240 epochs.
STAGE_ARGUMENTS: dict[str, Any] = {
  "protocol": "paper",
  "transition": 0,  # epoch at which the second stage begins, of protocol paper; 0: the first drop of the schedule
  "lambda_r": 0.5,
  "weighting": "reference_tcp",  # a name of `reference.WEIGHTINGS`
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
  "teacher_variables": "",  # a folder to take the teacher from; '': it is trained
  "teacher_epochs": 0,  # 0: as epochs
  "student": "resnet20",
  "epochs": PAPER_EPOCHS,
  "max_images": 0,  # of the student; 0: all
  "batch_size": 64,
  "learning_rate": 0.0,  # 0: each network's own in the literature
  "optimizer": "sgd",
  "padding": -1,  # of crops; -1: 4, and 0 (flips alone) on Tiny-ImageNet
  "num_views": 0,  # how many of its crops and flips each image is seen in; 0: all
  "teacher_cache": "off",  # 'float32' or 'float16', for those stages whose methods read no maps
  "evaluate_every_epochs": 1,
}


class Span(NamedTuple):
  """Epochs of a stage, and their place in a schedule."""

  epochs: int
  start: int = 0
  total: int = 0  # of a schedule that other stages share; 0: the stage has one of its own
  restart: bool = False  # begins at a tenth of the rate and drops after each third


def training_recipe(args: ConfigDict, model: str, optimizer: str = "sgd") -> dict[str, Any]:
  """Fields of every stage that trains a network of this model."""
  usual_padding = 0 if args.dataset == "tiny_imagenet" else 4
  padding = args.padding if args.padding >= 0 else usual_padding
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
  """Section `data` of an experiment."""
  return {
    "source": args.dataset,
    "folder": args.folder,
    "image_size": args.image_size,
    "validation": args.validation,
  }


def teacher_stages(args: ConfigDict, fields: Mapping[str, Any] | None = None) -> list[ConfigDict]:
  """The stage that trains the teacher; none where its variables are given. Its recipe, if not `fields`, has SGD."""
  if args.teacher_variables:
    return []
  fields = fields or training_recipe(args, args.teacher)
  return [stage("teacher", epochs=args.teacher_epochs or args.epochs, **fields)]


def student_network(args: ConfigDict, methods: Sequence[str]) -> ConfigDict:
  """The student, or the network made of it that its methods need."""
  if tuple(methods) == ("simkd",):
    return network("simkd", body=args.student, teacher=args.teacher)
  if "dml" in methods:
    return network("cohort", first=args.student, peer=args.student)
  return network(args.student)


def parse_methods(field: str, text: str) -> tuple[str, ...]:
  """Names of methods in a config argument, joined by +.

  Raises:
    UserError: there is none, or one that `smskd_jax.recipes.literature` does not have.
  """
  found = tuple(name for name in text.split("+") if name)
  if not found:
    raise UserError(f"config argument {field}: there are none; join some by +, as at+kd")
  for name in found:
    if name not in literature.recipe_names():
      raise unknown_name_error(f"config argument {field}", name, literature.recipe_names())
  return found


def parse_method(field: str, text: str) -> str:
  """The name of a single method in a config argument.

  Raises:
    UserError: as `names`, or there are several.
  """
  first, *others = parse_methods(field, text)
  if others:
    raise UserError(f"config argument {field}: {text!r} must be one method, as kd")
  return first


def transition_epoch(args: ConfigDict, milestones: Sequence[float] = MILESTONES) -> int:
  """Epoch at which the second stage begins, of protocol paper.

  Raises:
    UserError: it leaves one of the two stages without an epoch.
  """
  at = args.transition or round(milestones[0] * args.epochs)
  if not 0 < at < args.epochs:
    raise UserError(
      f"config argument transition: {at} is not inside the {args.epochs} epochs; choose one from 1 to {args.epochs - 1}"
    )
  return at


def stage_spans(args: ConfigDict, count: int, milestones: Sequence[float] = MILESTONES) -> list[Span]:
  """Epochs of so many stages, by the protocol.

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
  """Epochs for each of so many stages; the remainder goes to the first of them.

  Raises:
    UserError: there are fewer epochs than stages.
  """
  if epochs < count:
    raise UserError(f"config argument epochs: {epochs} cannot be shared by {count} stages; give more")
  part, rest = divmod(epochs, count)
  return [part + (i < rest) for i in range(count)]


def student_stage(
  args: ConfigDict, methods: Sequence[str], span: Span, fields: Mapping[str, Any], **overrides: Any
) -> ConfigDict:
  """A stage of the student.

  Args:
    args: `ARGUMENTS`.
    methods: names of `literature.names()`, trained jointly; none: labels alone.
    span: its epochs.
    fields: of the recipe, with `optimizer` and `schedule`.
    **more: further fields, which win.
  """
  published = [
    literature.published_recipe(name, args.teacher, args.student, field="config argument stages")
    for name in methods
  ]
  terms = [one.term for one in published]
  for term in terms:
    term.warmup_epochs *= args.epochs / args.get("nominal_epochs", PAPER_EPOCHS)
  kept = bool(terms) and all(make_method(term).cacheable for term in terms)
  optimizer, schedule = dict(fields["optimizer"]), dict(fields["schedule"])
  if span.restart:
    optimizer["learning_rate"] *= 0.1
    schedule["milestones"] = (1 / 3, 2 / 3)
  return stage(
    "student",
    **{
      "teachers": (args.get("teacher_network", "teacher"),) if terms else (),
      "methods": tuple(terms),
      "task_weight": min((one.task_weight for one in published), default=1.0),
      "epochs": span.epochs,
      "max_images": args.get("max_images", 0),
      "teacher_cache": args.get("teacher_cache", "off") if kept else "off",
      **fields,
      "optimizer": optimizer,
      "schedule": schedule | {"start_epoch": span.start, "total_epochs": span.total},
      **overrides,
    },
  )


def reference_fields(args: ConfigDict, **options: Any) -> dict[str, Any]:
  """Section `reference` of a stage after the first."""
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
  """SMSKD: one method a stage, each from the second on with the student of the stage before as its reference.

  Args:
    args: `STAGE_ARGUMENTS`, and the config file's own.
    methods: in order.
    fields: of the recipe, for every stage.
    anchor: options of `reference` that differ from the arguments'; {'stage': 'none'}: stages without a reference.

  Raises:
    UserError: as `spans`.
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
  """The student's stages by a name of `MODES`: `sequence` or `joint`.

  Raises:
    UserError: as `spans`, or an unknown mode.
  """
  if mode not in MODES:
    raise unknown_name_error("config argument mode", mode, MODES)
  return joint_stages(args, methods, fields) if mode == "joint" else sequential_stages(args, methods, fields)


def joint_stages(args: ConfigDict, methods: Sequence[str], fields: Mapping[str, Any]) -> list[ConfigDict]:
  """All methods at once for all epochs: the paper's baseline DLA."""
  return [student_stage(args, methods, Span(args.epochs), fields, name="+".join(methods))]


def single_method_stages(
  args: ConfigDict, method: str, fields: Mapping[str, Any], cuts: Sequence[int] = ()
) -> list[ConfigDict]:
  """One method for all epochs, in pieces that continue each other: its first ones are shared with other variants.

  The pieces together are one stage of all epochs, bit for bit.

  Args:
    args: `STAGE_ARGUMENTS`, and the config file's own.
    name: of the method.
    fields: of the recipe.
    cuts: epochs, ascending, at which a piece ends; those beside 0 and `epochs`.
  """
  ends = [*cuts, args.epochs]
  total = args.epochs if cuts else 0
  return [
    student_stage(
      args,
      (method,),
      Span(end - begin, begin, total),
      fields,
      name=f"{method}_to_{end}" if cuts else method,
      **({"carry_over": "all"} if begin else {}),
    )
    for begin, end in zip([0, *cuts], ends, strict=True)
  ]
