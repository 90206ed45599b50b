"""What the modes of the survey share: its recipe, its arguments, and the networks that teach.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850.
`survey_modes.py` has the modes themselves; configs/survey.py makes one of them an experiment, configs/studies/survey.py
all of them a study, and the first says what every argument means.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import experiment, method, network, parse_arg, stage
from smskd_jax.errors import UserError

ARGUMENTS: dict[str, Any] = {
  "dataset": "cifar10",
  "folder": "",
  "teacher": "survey_resnet26",
  "teachers": "survey_resnet20",
  "assistants": "survey_resnet20",
  "student": "survey_resnet8",
  "epochs": 200,
  "teacher_epochs": 0,
  "batch_size": 128,
  "learning_rate": 0.1,
  "padding": 4,
  "seed": 0,
  "temperature": 5.0,
  "weight": 0.5,
  "temperatures": "1+5+10+15+20",
  "weights": "0.1+0.4+0.5+0.7+1.0",
  "weighting": "equal",
  "consistency": 0.0,
  "attention": False,
  "reduction": "max",
  "teacher_statistics": "batch",
  "ab_epochs": 10,
  "unlabeled": "",
  "unlabeled_batch_size": 0,
  "pretrain_epochs": 100,
  "max_images": 0,
  "image_size": 0,
  "validation": 0.0,
  "extra_tests": "",
  "teacher_variables": "",
  "evaluate_every_epochs": 1,
}
TEACHER_FREE_MODES = ("nokd", "uda_nokd")
MULTI_TEACHER_MODES = ("allkd", "mkd")
VALIDATED_MODES = ("allkd", "kdparam")  # modes of several students


def parse_arguments(arg: str | None, **more: Any) -> ConfigDict:
  """The arguments behind a config file's colon: `ARGUMENTS`, and those of the file.

  Raises:
    UserError: as `config.parse_arg`, or a weight that is no share.
  """
  args = parse_arg(arg, **ARGUMENTS | more)
  if not 0 <= args.weight <= 1:
    raise UserError(f"config argument weight: {args.weight} is not in [0, 1]")
  return args


def split_names(text: str) -> list[str]:
  """The parts that are joined by +."""
  return [part for part in text.split("+") if part]


def parse_numbers(args: ConfigDict, name: str) -> list[float]:
  """The numbers of an argument, joined by +."""
  try:
    return [float(part) for part in split_names(args[name])]
  except ValueError:
    raise UserError(f"config argument {name}: {args[name]!r} are not numbers joined by +") from None


def make_experiment(
  args: ConfigDict, networks: Mapping[str, ConfigDict], stages: Sequence[ConfigDict]
) -> ConfigDict:
  """An experiment on the images that the arguments name.

  Args:
    args: of `parse`; `mode`, where there is one, decides on the share of validation.
    networks: by name.
    stages: in order.
  """
  needed = 0.1 if args.get("mode") in VALIDATED_MODES else 0.0
  return experiment(
    seed=args.seed,
    data={
      "source": args.dataset,
      "folder": args.folder,
      "validation": args.validation or needed,
      "image_size": args.image_size,
      "unlabeled": args.unlabeled,
      "extra_tests": tuple(split_names(args.extra_tests)),
    },
    networks=dict(networks),
    stages=tuple(stages),
    evaluate={"every_epochs": args.evaluate_every_epochs},
  )


class TeacherSetup(NamedTuple):
  """Who teaches, and how they have learned."""

  networks: dict[str, ConfigDict]
  stages: list[ConfigDict]  # of those that are trained, each once, in order


def teacher_setup(args: ConfigDict) -> TeacherSetup:
  """The teachers of a mode and, of takd, the assistants.

  Raises:
    UserError: some of the teachers have a folder of variables, and others none.
  """
  names = teacher_names(args)
  folders = split_names(args.teacher_variables) or [""] * len(names)
  if len(folders) < len(names):
    raise UserError(
      f"config argument teacher_variables: {len(folders)} for the teachers {', '.join(names)}; give a folder each"
    )
  given = dict(zip(names, folders, strict=False))
  assistants = split_names(args.assistants) if args.mode == "takd" else []
  return TeacherSetup(
    {name: network(name, variables=folder) for name, folder in given.items()}
    | {f"assistant_{name}": network(name) for name in assistants},
    [
      *(plain_stage(args, name, name, epochs=args.teacher_epochs) for name in names if not given[name]),
      *_assistant_stages(args, assistants),
    ],
  )


def teacher_names(args: ConfigDict) -> list[str]:
  """The names of the networks that teach in a mode; a teacher of theirs is no assistant."""
  if args.mode in TEACHER_FREE_MODES:
    return []
  others = split_names(args.teachers) if args.mode in MULTI_TEACHER_MODES else []
  return list(dict.fromkeys([args.teacher, *others]))


def _assistant_stages(args: ConfigDict, assistants: Sequence[str]) -> list[ConfigDict]:
  """Each learns from the one before, the first from the teacher, on the student's images."""
  names = [f"assistant_{name}" for name in assistants]
  best = {"keep_checkpoint": "validation" if args.validation else "last", "max_images": args.max_images}
  return [
    plain_stage(args, name, name, **kd_fields(args, [above]) | best)
    for above, name in zip([args.teacher, *names], names, strict=False)
  ]


def plain_stage(args: ConfigDict, learner: str, name: str, *, epochs: int = 0, **fields: Any) -> ConfigDict:
  """A stage by the survey's recipe; with no other fields, one that learns from labels alone."""
  epochs = epochs or args.epochs
  # Whole epochs, rounded down; of fewer than four epochs the first third is none.
  milestones = tuple(m / epochs for m in (int(0.33 * epochs), int(0.66 * epochs)) if m)
  recipe = {
    "optimizer": {"name": "sgd", "learning_rate": args.learning_rate, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "multistep", "milestones": milestones},
    "augment": {"crop_flip": {"padding": args.padding, "flip": True}},
  }
  return stage(learner, name=name, epochs=epochs, batch_size=args.batch_size, **recipe | fields)


def student_stage(args: ConfigDict, name: str = "", **fields: Any) -> ConfigDict:
  """A stage of the student, on its share of the images."""
  return plain_stage(args, "student", name or args.mode, max_images=args.max_images, **fields)


def kd_fields(
  args: ConfigDict,
  teachers: Sequence[str],
  *,
  temperature: float = 0.0,
  weight: float | None = None,
  methods: Sequence[ConfigDict] = (),
  plugins: Sequence[ConfigDict] = (),
  **fields: Any,
) -> dict[str, Any]:
  """What a stage needs for KD, and for the methods beside it.

  Args:
    args: of `parse`.
    teachers: names of networks.
    temperature: T; 0: the arguments'.
    weight: lambda; None: the arguments'.
    methods: beside KD.
    plugins: around KD.
    **fields: of the stage, in the place of these.
  """
  weight = args.weight if weight is None else weight
  kd = method("kd", weight=weight, temperature=temperature or args.temperature, plugins=tuple(plugins))
  return {
    "teachers": tuple(teachers),
    "methods": (kd, *methods),
    "task_weight": 1 - weight,
    "unlabeled_batch_size": args.unlabeled_batch_size,
    **fields,
  }
