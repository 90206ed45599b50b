"""Published numbers of the SMSKD paper, and studies for its tables and figures.

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657, version 1. Top-1 test accuracy in percent, mean of 3 seeds after 240 epochs; the paper
gives no standard deviations. All numbers are the authors'.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import experiment, network, parse_arg, study
from smskd_jax.errors import UserError
from smskd_jax.recipes import literature, smskd
from smskd_jax.recipes.common import parse_seeds

METHODS = ("fitnet", "at", "vid", "cc", "rkd", "crd", "pkt")


class TableColumn(NamedTuple):
  """Accuracies of one pair of networks in Table 1 or 2, whose second stage is KD."""

  teacher: float
  student: float
  kd: float
  rows: Mapping[
    str, tuple[float, float, float, float]
  ]  # by method of the first stage: alone, DLA, SAKD, SMSKD


def _rows(*rows: tuple[float, float, float, float]) -> dict[str, tuple[float, float, float, float]]:
  return dict(zip(METHODS, rows, strict=True))


# fmt: off
TABLE_1 = {  # CIFAR-100
  "resnet56-resnet20": TableColumn(73.29, 69.15, 70.35, _rows(
    (69.42, 70.68, 71.45, 71.74), (70.36, 71.42, 71.50, 72.16), (70.38, 71.00, 71.36, 72.03),
    (69.82, 70.59, 71.84, 71.53), (69.85, 71.80, 71.29, 71.12), (71.89, 71.90, 71.98, 72.42),
    (71.03, 71.54, 71.69, 71.87))),
  "wrn_40_2-wrn_16_2": TableColumn(75.61, 71.98, 74.18, _rows(
    (73.96, 75.27, 75.37, 75.61), (74.38, 75.53, 75.41, 75.97), (74.47, 75.05, 74.93, 75.98),
    (73.89, 75.67, 75.31, 75.61), (73.45, 75.33, 75.18, 74.99), (75.49, 75.33, 75.18, 76.02),
    (74.80, 74.81, 74.98, 75.09))),
}
TABLE_2 = {  # Tiny-ImageNet
  "resnet56-resnet20": TableColumn(56.51, 51.12, 53.19, _rows(
    (50.95, 53.13, 54.37, 53.54), (53.67, 54.39, 54.35, 54.91), (52.80, 53.58, 53.65, 53.91),
    (51.93, 54.55, 54.20, 53.36), (52.85, 54.30, 54.04, 53.03), (54.61, 55.55, 55.33, 55.83),
    (52.85, 54.77, 54.39, 53.80))),
  "vgg13-vgg8": TableColumn(60.38, 55.06, 58.27, _rows(
    (56.38, 59.09, 58.65, 59.18), (56.39, 58.83, 58.90, 59.19), (55.93, 58.51, 58.48, 58.68),
    (55.89, 58.40, 58.39, 58.42), (56.65, 58.57, 58.66, 58.71), (57.29, 59.68, 60.25, 60.19),
    (57.28, 58.62, 58.65, 59.78))),
}
# CIFAR-100, second stage KD: alone, stages without a reference, with a constant weight, with weights by TCP.
TABLE_3_PAIR, TABLE_3_KD = "wrn_40_2-wrn_16_2", 75.34
TABLE_3 = _rows(
  (73.96, 74.97, 75.50, 75.61), (74.38, 75.30, 75.79, 75.97), (74.47, 75.42, 75.83, 75.98),
  (73.89, 75.32, 75.56, 75.61), (73.45, 74.66, 75.28, 74.99), (75.49, 75.11, 75.86, 76.02),
  (74.80, 75.50, 75.66, 75.09),
)
# fmt: on

ARGUMENTS: dict[str, Any] = {
  **{name: value for name, value in smskd.ARGUMENTS.items() if name not in ("teacher", "student")},
  "seeds": "0+1+2",
}


def parse_arguments(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses the arguments behind a config file's colon.

  They are `ARGUMENTS`, and `defaults` of the file with `pair`.

  Raises:
    UserError: as `parse_arg`; a bad pair, or seeds that are not whole numbers.
  """
  args = parse_arg(arg, **ARGUMENTS | defaults)
  models = args.pair.split("-")
  if len(models) != 2:
    raise UserError(f"config argument pair: {args.pair!r} is not TEACHER-STUDENT, as resnet56-resnet20")
  with args.unlocked():
    args.teacher, args.student = models
    args.seed_list = parse_seeds(args.seeds)
  return args


class StageBuilder(NamedTuple):
  """Stage lists of the student. Variants with equal first stages share them."""

  args: ConfigDict
  fields: dict[str, Any]  # recipe of the student's stages

  def label_only(self) -> list[ConfigDict]:
    """The student with labels only."""
    return [smskd.student_stage(self.args, (), smskd.Span(self.args.epochs), self.fields, name="labels")]

  def single_method(self, method: str, cuts: Sequence[int] | None = None) -> list[ConfigDict]:
    """One method for all epochs, cut at the transition of protocol paper, or at `cuts`."""
    if cuts is None:
      cuts = [smskd.transition_epoch(self.args)] if self.args.protocol == "paper" else []
    return smskd.single_method_stages(self.args, method, self.fields, cuts)

  def joint(self, *methods: str) -> list[ConfigDict]:
    """All methods jointly for all epochs (DLA)."""
    return smskd.joint_stages(self.args, methods, self.fields)

  def spot_adaptive(self, method: str) -> list[ConfigDict]:
    """One method and KD at spots that a policy chooses for each image, for all epochs (SAKD)."""
    return self.single_method(literature.SAKD_PREFIX + method, cuts=())

  def sequential(self, *methods: str, **reference: Any) -> list[ConfigDict]:
    """SMSKD: one method per stage, with further options of the reference."""
    return smskd.sequential_stages(self.args, methods, self.fields, reference)


def make_stage_builder(args: ConfigDict) -> StageBuilder:
  """Builder of the student's stage lists."""
  return StageBuilder(args, smskd.training_recipe(args, args.student, args.optimizer))


def make_study(args: ConfigDict, variants: Mapping[str, Sequence[ConfigDict]], **fields: Any) -> ConfigDict:
  """Study of several stage lists of one student, whose teacher is trained once or given.

  Args:
    args: of `parse_arguments`.
    variants: stages of the student by name of the variant.
    **fields: further fields of the study.
  """
  teacher = network(args.teacher, variables=args.teacher_variables)
  teacher_stages = smskd.teacher_stages(args)

  def make_experiment(stages: Sequence[ConfigDict], networks: Mapping[str, Any]) -> ConfigDict:
    return experiment(
      data=smskd.data_fields(args),
      networks={"teacher": teacher, **networks},
      stages=tuple(stages),
      evaluate={"every_epochs": args.evaluate_every_epochs},
    )

  student = {"student": network(args.student)}
  return study(
    seeds=args.seed_list,
    variants={name: make_experiment(stages, student) for name, stages in variants.items()},
    teachers=make_experiment(teacher_stages, {}) if teacher_stages else {},
    **fields,
  )


def claimed_difference(first: float | None, second: float | None) -> str:
  """Difference of two published numbers in points, as '+1.80'; '' if one of them is missing."""
  return "" if first is None or second is None else f"{first - second:+.2f}"


def budget_note(args: ConfigDict, data: str) -> str:
  """Sentence that compares the budgets of the paper and of this study."""
  return (
    f"The paper's numbers are of {data}, {smskd.PAPER_EPOCHS} epochs and 3 seeds without deviations; ours of "
    f"`{args.dataset}`, {args.epochs} epochs and {len(args.seed_list)} seeds."
  )


def pair_table(
  args: ConfigDict, table: Mapping[str, TableColumn], data: str, notes: Sequence[str]
) -> ConfigDict:
  """Table 1 or 2 for one pair.

  Labels only, KD alone, and each method alone, jointly with KD, with KD at adaptive spots (SAKD), and before KD.

  Args:
    args: of `parse_arguments`, with `methods` and `second`.
    table: published numbers by pair.
    data: name of the paper's data set.
    notes: sentences on the published numbers.
  """
  methods, second = smskd.parse_methods("methods", args.methods), smskd.parse_method("second", args.second)
  column = table.get(args.pair) if second == "kd" else None
  builder = make_stage_builder(args)
  variants = {"student": builder.label_only(), second: builder.single_method(second)}
  published = {"student": column.student, "kd": column.kd} if column else {}
  claims = []
  for name in methods:
    alone, dla, sakd, stages = names = tuple(f"{name}.{end}" for end in ("alone", "dla", "sakd", "smskd"))
    others = [alone, second, dla]
    variants[alone] = builder.single_method(name)
    variants[dla] = builder.joint(name, second)
    if second == "kd" and literature.SAKD_PREFIX + name in literature.recipe_names():
      variants[sakd] = builder.spot_adaptive(name)
      others.append(sakd)
    variants[stages] = builder.sequential(name, second)
    row = column.rows.get(name) if column else None
    if row:
      published |= {name: value for name, value in zip(names, row, strict=True) if name in variants}
    for other in others:
      claims.append((stages, other, claimed_difference(published.get(stages), published.get(other))))
  notes = (budget_note(args, data), *(notes if column else ()))
  return make_study(args, variants, control=second, published=published, claims=claims, notes=notes)
