"""The survey: every mode of configs/survey.py, times seeds, against labels alone.

  python -m smskd_jax.study --config=configs/studies/survey.py:dataset=cifar10 --workdir=runs/survey

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850, finds
that most methods do not beat labels alone by much, and that KD with augmentation (`uda`) does. Its numbers, of one seed
and the best epoch by the test set (our column `oracle`), are shown beside ours for its pair on CIFAR-10 or its JPEG
copies: Table 4 for epochs=350, else Table 3. The survey's second teacher of mkd was a WRN-22-4; ours is `teachers`.

  nokd kd allkd kdparam triplet mkd uda uda_nokd takd ab oh rkd pkd sfd stl blind    the modes
  rkd_attention    with the attention term, which the survey's code computes and does not add
  sfd_mean         the mean over the batch in the place of its worst image
  oh_running       a teacher that normalises as in evaluation
  mkd_tcp          teachers weighted, image by image, by their true-class probability

Teachers are trained once for all modes and seeds, and so are the assistants of takd: differences between modes are
those of these teachers. Teachers see all images but those of `validation`, assistants what students see. `stl` is there
where `unlabeled` names its images, as tfds:stl10. kdparam has a student for each of 25 settings, more than all other
modes together: temperatures=2+5,weights=0.5+0.9 makes it four.

Arguments: those of configs/survey.py but mode (`seed` is the teachers'), and modes (of the above, joined by +; default:
all), seeds. The control is nokd, or the first of `modes` where it is not among them.
"""

from ml_collections import ConfigDict

from smskd_jax.config import network, study
from smskd_jax.errors import unknown_name_error
from smskd_jax.recipes import smskd_tables, survey
from smskd_jax.recipes.survey_modes import MODES

VARIANTS = {name: {"mode": name} for name in MODES} | {
  "rkd_attention": {"mode": "rkd", "attention": True},
  "sfd_mean": {"mode": "sfd", "reduction": "mean"},
  "oh_running": {"mode": "oh", "teacher_statistics": "running"},
  "mkd_tcp": {"mode": "mkd", "weighting": "tcp"},
}
TABLE_3 = {
  "takd": 90.57, "uda": 90.52, "mkd": 90.34, "kd": 90.33, "rkd": 90.22, "nokd": 89.42, "sfd": 87.47, "oh": 87.09,
}  # fmt: skip
TABLE_4 = {"uda": 91.22, "takd": 90.97, "kd": 90.77, "uda_nokd": 90.34, "nokd": 89.34}


def get_config(arg=None):
  """The study for a string of arguments."""
  args = survey.parse_arguments(arg, modes="", seeds="0+1+2")
  each = {name: ConfigDict(args.to_dict() | VARIANTS[name]) for name in variant_names(args)}
  variants = {name: survey.make_experiment(of, *student_setup(of)) for name, of in each.items()}
  return study(
    seeds=smskd_tables.parse_seeds(args.seeds),
    teachers=teacher_experiment(args, each.values()),
    variants=variants,
    control="nokd" if "nokd" in variants else "",
    published={name: value for name, value in published_accuracies(args).items() if name in variants},
  )


def variant_names(args):
  """The names of the variants."""
  for name in survey.split_names(args.modes):
    if name not in VARIANTS:
      raise unknown_name_error("config argument modes", name, VARIANTS)
  return survey.split_names(args.modes) or [name for name in VARIANTS if name != "stl" or args.unlabeled]


def student_setup(args):
  """The networks and the student's stages of a variant."""
  return survey.teacher_setup(args).networks | {"student": network(args.student)}, MODES[args.mode](args)


def teacher_experiment(args, each):
  """The networks that teach in any of the variants, each trained once; {} where none is."""
  taught = [survey.teacher_setup(of) for of in each]
  networks = {name: entry for of in taught for name, entry in of.networks.items()}
  stages = {stage.network: stage for of in taught for stage in of.stages}
  return survey.make_experiment(args, networks, list(stages.values())) if stages else {}


def published_accuracies(args):
  """The survey's numbers for its own setting."""
  pair = (args.teacher, args.student) == ("survey_resnet26", "survey_resnet8")
  if not pair or args.dataset not in ("cifar10", "tfds:cifar10", "cifar10_jpeg"):
    return {}
  return TABLE_4 if args.epochs == 350 else TABLE_3
