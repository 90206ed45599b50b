"""What the studies of SMSKD share: one teacher, one student, one budget, one way to train.

A config file of a study parses its arguments with `parse`, makes stages with `student` or `sequence` and the study
with `make`, or of several pairs with `pair`, `teachers` and `variant`. The protocol is the same for all variants: SGD
with momentum and decay, a warm-up, cosine decay over each stage, crop and flip. Methods have their published weights,
networks their published rates (`smskd_jax.literature`).
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from smskd_jax import literature, losses
from smskd_jax.config import experiment, network, parse_arg, stage
from smskd_jax.errors import UserError
from smskd_jax.studies.config import study

ARGUMENTS: dict[str, Any] = {
  "dataset": "cifar100",
  "folder": "",
  "image_size": 0,
  "padding": 4,
  "views": 0,  # how many of its crops each image is seen in; 0: all
  "teacher_cache": "off",  # 'float32' or 'float16', for those stages whose methods read no maps
  "validation": 0.0,
  "teacher": "resnet56",
  "teacher_variables": "",  # a folder to take the teacher from; '': train it once for all variants
  "teacher_epochs": 0,  # 0: as epochs
  "student": "resnet20",
  "methods": "fitnet+rkd+kd",  # of the stages, in order
  "epochs": 240,  # of a student in all its stages together
  "max_images": 0,  # of the students; 0: all
  "batch_size": 64,
  "learning_rate": 0.0,  # 0: each network's own in the literature
  "warmup_epochs": 1.0,  # of every stage
  "reference_weight": 1.0,
  "evaluate_every_epochs": 1,
  "seeds": "0+1+2",
}


def parse(arg: str | None, *, without: Sequence[str] = (), **more: Any) -> ConfigDict:
  """The arguments behind a config file's colon: `ARGUMENTS`, and those of the file.

  Args:
    arg: the string.
    without: names of `ARGUMENTS` that the file does not take.
    **more: defaults of its own.

  Raises:
    UserError: as `config.parse_arg`, or seeds that are not numbers.
  """
  allowed = ARGUMENTS | more
  args = parse_arg(arg, **{name: default for name, default in allowed.items() if name not in without})
  args.unlock()
  args.teacher_network = "teacher"  # its name in the experiment
  args.seed_list = seeds(args.seeds)
  args.method_list = tuple(name for name in args.methods.split("+") if name)
  if not args.method_list:
    raise UserError("config argument methods: there are none; join some by +, as fitnet+rkd+kd")
  return args


def seeds(text: str) -> tuple[int, ...]:
  """The seeds of a study, joined by +.

  Raises:
    UserError: they are not whole numbers.
  """
  try:
    return tuple(int(seed) for seed in text.split("+"))
  except ValueError:
    raise UserError(f"config argument seeds: {text!r} are not whole numbers joined by +") from None


def pair(args: ConfigDict, teacher: str, student: str, variables: str = "") -> ConfigDict:
  """The arguments for one of several pairs: its teacher is a network of its own name.

  Args:
    args: of `parse`.
    teacher: name of its model.
    student: likewise.
    variables: a folder to take the teacher from; '': it is trained.
  """
  own = {"teacher": teacher, "student": student, "teacher_variables": variables, "teacher_network": teacher}
  return ConfigDict(args.to_dict() | own)


def make(args: ConfigDict, variants: dict[str, Sequence[ConfigDict]], **fields: Any) -> ConfigDict:
  """A study of the student's stages by the variant's name; other fields are the study's."""
  made = {name: variant(args, stages) for name, stages in variants.items()}
  return study(seeds=args.seed_list, variants=made, teachers=teachers([args]), **fields)


def variant(args: ConfigDict, stages: Sequence[ConfigDict]) -> ConfigDict:
  """The experiment of a student's stages, with the teacher of its pair."""
  networks = {args.teacher_network: _teacher(args), "student": network(args.student)}
  return _experiment(args, networks, stages)


def teachers(each: Sequence[ConfigDict]) -> ConfigDict | dict[str, Any]:
  """The study's `teachers`: those of all pairs that are not given, each once; {}: there are none.

  Args:
    each: the arguments of each pair.
  """
  trained = {args.teacher_network: args for args in each if not args.teacher_variables}
  if not trained:
    return {}
  stages = [
    stage(name, epochs=args.teacher_epochs or args.epochs, **recipe(args, args.teacher))
    for name, args in trained.items()
  ]
  return _experiment(each[0], {name: _teacher(args) for name, args in trained.items()}, stages)


def _teacher(args: ConfigDict) -> ConfigDict:
  return network(args.teacher, variables=args.teacher_variables)


def _experiment(
  args: ConfigDict, networks: dict[str, ConfigDict], stages: Sequence[ConfigDict]
) -> ConfigDict:
  of_data = {"source": args.dataset, "folder": args.folder, "image_size": args.image_size}
  return experiment(
    data={**of_data, "validation": args.validation},
    networks=networks,
    stages=tuple(stages),
    evaluate={"every_epochs": args.evaluate_every_epochs},
  )


def recipe(args: ConfigDict, name: str) -> dict[str, Any]:
  """How a network is trained, by the name of its model."""
  rate = args.learning_rate or literature.learning_rate(name)
  return {
    "batch_size": args.batch_size,
    "optimizer": {"name": "sgd", "learning_rate": rate},
    "schedule": {"name": "cosine", "warmup_epochs": args.warmup_epochs},
    "augment": {"crop_flip": {"padding": args.padding, "flip": True, "views": args.views}},
  }


def student(
  args: ConfigDict, methods: Sequence[str], epochs: int, *, anchored: bool = False, **fields: Any
) -> ConfigDict:
  """A stage of the student.

  Args:
    args: of `parse`.
    methods: names of `literature.names()`, trained jointly.
    epochs: of the stage.
    anchored: whether the student of the stage before is its reference.
    **fields: of the stage; those of `reference` are added to what `anchored` says.
  """
  published = [
    literature.recipe(name, args.teacher, args.student, field="config argument methods") for name in methods
  ]
  reference = {"stage": "previous", "weight": args.reference_weight} if anchored else {}
  kept = bool(methods) and not any(one.term["name"] in losses.READS_MAPS for one in published)
  return stage(
    "student",
    **{
      "teachers": (args.teacher_network,) if methods else (),
      "methods": tuple(one.term for one in published),
      "task_weight": min((one.task_weight for one in published), default=1.0),
      "epochs": epochs,
      "max_images": args.max_images,
      "teacher_cache": args.teacher_cache if kept else "off",
      **recipe(args, args.student),
      **fields,
      "reference": reference | fields.get("reference", {}),
    },
  )


def shares(epochs: int, count: int) -> list[int]:
  """Epochs for each of so many stages; what does not divide goes to the first of them.

  Raises:
    UserError: there are fewer epochs than stages.
  """
  if epochs < count:
    raise UserError(f"config argument epochs: {epochs} cannot be shared by {count} stages; give more")
  share, rest = divmod(epochs, count)
  return [share + (i < rest) for i in range(count)]


def sequence(
  args: ConfigDict, methods: Sequence[str], *, full: bool = False, **fields: Any
) -> list[ConfigDict]:
  """SMSKD: one method a stage, each from the second on anchored by the one before.

  Args:
    args: of `parse`.
    methods: in order.
    full: whether every stage has all `epochs`, and not its share of them.
    **fields: of every stage but the first; of `reference` in part.
  """
  budgets = [args.epochs] * len(methods) if full else shares(args.epochs, len(methods))
  return [
    student(args, (name,), epochs, name=f"{i + 1}_{name}", anchored=i > 0, **(fields if i else {}))
    for i, (name, epochs) in enumerate(zip(methods, budgets, strict=True))
  ]
