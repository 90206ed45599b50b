"""Modes of the KD survey as stage lists.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850, and its
public code. configs/survey.py makes an experiment of one mode and documents the arguments; configs/studies/survey.py
makes a study of all modes.

The recipe of every network: SGD with Nesterov momentum 0.9 and weight decay 5e-4, batch 128, learning rate 0.1, reduced
by 0.1 after a third and two thirds of the epochs, crops of the image padded by 4, flips. KD stands for
(1 - lambda) CE + lambda T^2 KL(teacher || student) with T = 5 and lambda = 0.5. The docstring of each mode has the
survey's test accuracy on CIFAR-10 in percent (one seed, the best epoch by the test set) and the differences from its
code. Bugs of that code are not reproduced.
"""

from collections.abc import Callable, Mapping, Sequence
import types
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from smskd_jax.config import experiment, method, network, parse_arg, plugin, stage
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.recipes.common import parse_numbers, split_names

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
VALIDATED_MODES = ("allkd", "kdparam")  # train several students, of which the best by validation is reported
VALIDATION = 0.1  # fraction of the training images, in these modes


def parse_arguments(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses the arguments behind a config file's colon.

  They are `ARGUMENTS`, and `defaults` of the file.

  Raises:
    UserError: as `parse_arg`; an unknown `mode`, or a `weight` outside [0, 1].
  """
  args = parse_arg(arg, **ARGUMENTS | defaults)
  if not 0 <= args.weight <= 1:
    raise UserError(f"config argument weight: {args.weight} is not in [0, 1]")
  if "mode" in args and args.mode not in MODES:
    raise unknown_name_error("config argument mode", args.mode, MODES)
  return args


def mode_experiment(args: ConfigDict) -> ConfigDict:
  """Experiment of one mode: its teachers are trained first."""
  setup = teacher_setup(args)
  networks = setup.networks | {"student": network(args.student)}
  return make_experiment(args, networks, [*setup.stages, *MODES[args.mode](args)])


def make_experiment(
  args: ConfigDict, networks: Mapping[str, ConfigDict], stages: Sequence[ConfigDict]
) -> ConfigDict:
  """Experiment on the data of the arguments.

  Args:
    args: of `parse_arguments`.
    networks: networks by name.
    stages: stages in order.
  """
  validation = VALIDATION if args.get("mode") in VALIDATED_MODES else 0.0
  return experiment(
    seed=args.seed,
    data={
      "source": args.dataset,
      "folder": args.folder,
      "validation": args.validation or validation,
      "image_size": args.image_size,
      "unlabeled": args.unlabeled,
      "extra_tests": tuple(split_names(args.extra_tests)),
    },
    networks=dict(networks),
    stages=tuple(stages),
    evaluate={"every_epochs": args.evaluate_every_epochs},
  )


class TeacherSetup(NamedTuple):
  """Teachers and assistants of a mode."""

  networks: dict[str, ConfigDict]
  stages: list[ConfigDict]  # that train those without given variables, each once, in order


def teacher_setup(args: ConfigDict) -> TeacherSetup:
  """Teachers of a mode and, for takd, its assistants.

  Raises:
    UserError: `teacher_variables` has fewer folders than there are teachers.
  """
  names = teacher_names(args)
  folders = split_names(args.teacher_variables) or [""] * len(names)
  if len(folders) < len(names):
    raise UserError(
      f"config argument teacher_variables: {len(folders)} for the teachers {', '.join(names)}; give a folder each"
    )
  variables = dict(zip(names, folders, strict=False))
  assistants = split_names(args.assistants) if args.mode == "takd" else []
  untrained = [name for name in names if not variables[name]]
  return TeacherSetup(
    {name: network(name, variables=folder) for name, folder in variables.items()}
    | {f"assistant_{name}": network(name) for name in assistants},
    [
      *(plain_stage(args, name, name, epochs=args.teacher_epochs, max_images=0) for name in untrained),
      *_assistant_stages(args, assistants),
    ],
  )


def teacher_names(args: ConfigDict) -> list[str]:
  """Names of the teachers in a mode, without assistants."""
  if args.mode in TEACHER_FREE_MODES:
    return []
  others = split_names(args.teachers) if args.mode in MULTI_TEACHER_MODES else []
  return list(dict.fromkeys([args.teacher, *others]))


def _assistant_stages(args: ConfigDict, assistants: Sequence[str]) -> list[ConfigDict]:
  """KD of each assistant from the previous one, of the first from the teacher."""
  names = [f"assistant_{name}" for name in assistants]
  keep = "validation" if args.validation else "last"
  return [
    kd_stage(args, [teacher], name, network_name=name, keep_checkpoint=keep)
    for teacher, name in zip([args.teacher, *names], names, strict=False)
  ]


def plain_stage(
  args: ConfigDict, name: str = "", network_name: str = "student", *, epochs: int = 0, **fields: Any
) -> ConfigDict:
  """Stage by the survey's recipe; without further fields it learns from labels only.

  Args:
    args: of `parse_arguments`.
    name: name of the stage. '': the mode.
    network_name: network that is trained.
    epochs: number of epochs. 0: `args.epochs`.
    **fields: further fields, which override the recipe.
  """
  epochs = epochs or args.epochs
  # Whole epochs, rounded down as in the survey's code; with fewer than four epochs there is no first drop.
  milestones = tuple(m / epochs for m in (int(0.33 * epochs), int(0.66 * epochs)) if m)
  recipe = {
    "batch_size": args.batch_size,
    "max_images": args.max_images,
    "optimizer": {"name": "sgd", "learning_rate": args.learning_rate, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "multistep", "milestones": milestones},
    "augment": {"crop_flip": {"padding": args.padding, "flip": True}},
  }
  return stage(network_name, name=name or args.mode, epochs=epochs, **recipe | fields)


def kd_stage(
  args: ConfigDict,
  teachers: Sequence[str],
  name: str = "",
  *,
  network_name: str = "student",
  temperature: float = 0.0,
  weight: float | None = None,
  methods: Sequence[ConfigDict] = (),
  plugins: Sequence[ConfigDict] = (),
  **fields: Any,
) -> ConfigDict:
  """Stage that learns by KD, and by further methods if there are any.

  Args:
    args: of `parse_arguments`.
    teachers: names of the teachers' networks.
    name: name of the stage. '': the mode.
    network_name: network that is trained.
    temperature: T. 0: `args.temperature`.
    weight: lambda, in [0, 1]. None: `args.weight`.
    methods: further methods.
    plugins: plug-ins of KD.
    **fields: further fields, which override those of KD.
  """
  weight = args.weight if weight is None else weight
  kd = method("kd", weight=weight, temperature=temperature or args.temperature, plugins=tuple(plugins))
  kd_fields = {
    "teachers": tuple(teachers),
    "methods": (kd, *methods),
    "task_weight": 1 - weight,
    "unlabeled_batch_size": args.unlabeled_batch_size,
  }
  return plain_stage(args, name, network_name, **kd_fields | fields)


def nokd(args: ConfigDict) -> list[ConfigDict]:
  """Labels only. The survey: 89.42 at 200 epochs, 89.34 at 350."""
  return [plain_stage(args)]


def kd(args: ConfigDict) -> list[ConfigDict]:
  """KD from one teacher. The survey: 90.33 at 200 epochs, 90.77 at 350."""
  return [kd_stage(args, [args.teacher])]


def allkd(args: ConfigDict) -> list[ConfigDict]:
  """A student for each teacher, from scratch.

  The survey (Table 2): 90.40 from resnet26, 89.50 from resnet18.

  The survey selects among resnet8 to resnet56 by the test set. Here `teachers` names the candidates, and the column
  "best by validation" of the report selects.
  """
  return [kd_stage(args, [name], f"kd_from_{name}", init="scratch") for name in teacher_names(args)]


def kdparam(args: ConfigDict) -> list[ConfigDict]:
  """A student for each temperature and weight, from scratch. The survey gives no number.

  The survey's code sweeps the weight only: its line for the temperature is an annotation without effect.
  """
  temperatures = parse_numbers("temperatures", args.temperatures, float)
  weights = parse_numbers("weights", args.weights, float)
  return [
    kd_stage(args, [args.teacher], f"kd_T{t:g}_w{w:g}", temperature=t, weight=w, init="scratch")
    for t in temperatures
    for w in weights
  ]


def triplet(args: ConfigDict) -> list[ConfigDict]:
  """KD with the cosine of the logits in place of the labels. The survey gives no number.

  The survey calls this a triplet loss; its code has neither negatives nor cross-entropy.
  """
  cosine = method("logits_cosine", weight=1 - args.weight)
  return [kd_stage(args, [args.teacher], methods=(cosine,), task_weight=0.0)]


def mkd(args: ConfigDict) -> list[ConfigDict]:
  """KD from several teachers, the mean of their divergences. The survey: 90.34 at 200 epochs.

  The survey's teachers are resnet26 and a WRN-22-4. The weightings `accuracy` and `tcp` are not the survey's.
  """
  multi_teacher = plugin("multi_teacher", weighting=args.weighting)
  return [kd_stage(args, teacher_names(args), plugins=(multi_teacher,))]


def uda(args: ConfigDict) -> list[ConfigDict]:
  """KD on two views: crop and flip, and AutoAugment of the whole image.

  The survey: 90.52 and 91.22.

  Teacher and student see the same view, and labels count on both views. `consistency` weighs the term of the UDA paper
  (Xie et al. 2020), which the survey's code contains but does not use.
  """
  consistency = (method("uda", weight=args.consistency),) if args.consistency else ()
  return [kd_stage(args, [args.teacher], methods=consistency, **two_view_fields(args))]


def uda_nokd(args: ConfigDict) -> list[ConfigDict]:
  """The two views of `uda` with labels only. The survey: 90.34 at 350 epochs.

  Its code has no such mode.
  """
  return [plain_stage(args, **two_view_fields(args))]


def two_view_fields(args: ConfigDict) -> dict[str, Any]:
  """Fields of a stage with the survey's two views; AutoAugment fills with grey."""
  crop_flip = {"padding": args.padding, "flip": True}
  return {
    "views": ("crop_flip", "autoaugment"),
    "augment": {"crop_flip": crop_flip, "autoaugment": {"fill": 128}},
  }


def takd(args: ConfigDict) -> list[ConfigDict]:
  """KD along a chain of assistants, each trained for all epochs.

  The survey: 90.57 and 90.97, with resnet20.

  `teacher_setup` has the assistants' stages. The survey keeps the best epoch of an assistant by the test set; here
  the best by the validation set, or the last epoch without one.
  """
  assistants = split_names(args.assistants)
  return [kd_stage(args, [f"assistant_{assistants[-1]}" if assistants else args.teacher])]


def ab(args: ConfigDict) -> list[ConfigDict]:
  """Activation boundaries for `ab_epochs`, then KD for all epochs.

  The survey gives no number.
  """
  boundaries: dict[str, Any] = {"teachers": (args.teacher,), "methods": (method("ab"),), "task_weight": 0.0}
  return [
    plain_stage(args, "ab_boundaries", epochs=args.ab_epochs, **boundaries),
    kd_stage(args, [args.teacher]),
  ]


def oh(args: ConfigDict) -> list[ConfigDict]:
  """Labels and OFD, its margins from the teacher's batch norms.

  The survey: 87.09 at 200 epochs, below nokd.

  The survey's teacher normalises by batch statistics, as in training: teacher_statistics=batch. Its running statistics
  change in the survey's code and do not here.
  """
  ofd = method("ofd", weight=1e-3)
  statistics = {"teacher_statistics": args.teacher_statistics}
  return [plain_stage(args, teachers=(args.teacher,), methods=(ofd,), **statistics)]


def rkd(args: ConfigDict) -> list[ConfigDict]:
  """KD and RKD of the embeddings. The survey: 90.22 at 200 epochs.

  The survey's code computes an attention term of weight 50 and does not add it to the loss: attention=True does.
  """
  attention = (method("at", weight=50.0),) if args.attention else ()
  relations = method("rkd", distance_weight=25.0, angle_weight=50.0)
  return [kd_stage(args, [args.teacher], methods=(relations, *attention))]


def pkd(args: ConfigDict) -> list[ConfigDict]:
  """KD and 10 times the mean squared error of the concatenated maps.

  The survey gives no number.
  """
  return [kd_stage(args, [args.teacher], methods=(method("pkd"),))]


def sfd(args: ConfigDict) -> list[ConfigDict]:
  """Labels and the distance of the maps' maxima, of the worst image in each batch.

  The survey: 87.47, below nokd.

  reduction=mean takes the mean over the batch instead.
  """
  return [plain_stage(args, teachers=(args.teacher,), methods=(method("sfd", reduction=args.reduction),))]


def stl(args: ConfigDict) -> list[ConfigDict]:
  """The embedding on the images of `unlabeled`, then the classifier by KD.

  The first by squared error, the second with T = 10, lambda = 0.7.

  The survey: "90.8", in the last row of a sorted table, likely a misprint. Its code, of an earlier state, has the
  teacher resnet110, the images of STL-10, and Adam at 1e-3 with a rate that falls on plateaus. The rate here is
  constant.

  Raises:
    UserError: `unlabeled` is empty.
  """
  if not args.unlabeled:
    raise UserError("config argument unlabeled: mode=stl needs a source of images, as tfds:stl10")
  adam = {"optimizer": {"name": "adam", "learning_rate": 1e-3}, "schedule": {"name": "constant"}}
  embedding = {"images": "unlabeled", "methods": (method("embedding_mse"),), "task_weight": 0.0}
  pretraining = {"teachers": (args.teacher,), "epochs": args.pretrain_epochs, **embedding, **adam}
  on_labels: dict[str, Any] = {"unlabeled_batch_size": 0, "trainable": "head"}
  return [
    plain_stage(args, "stl_embedding", **pretraining),
    kd_stage(args, [args.teacher], temperature=10.0, weight=0.7, **on_labels),
  ]


def blind(args: ConfigDict) -> list[ConfigDict]:
  """KD on noise, without labels: lambda T^2 KL.

  A class of the survey's code that no mode of that code uses.
  """
  return [kd_stage(args, [args.teacher], task_weight=0.0, views=("noise",))]


MODES: Mapping[str, Callable[[ConfigDict], list[ConfigDict]]] = types.MappingProxyType({
  function.__name__: function
  for function in (
    nokd, kd, allkd, kdparam, triplet, mkd, uda, uda_nokd, takd, ab, oh, rkd, pkd, sfd, stl, blind,
  )
})  # fmt: skip
