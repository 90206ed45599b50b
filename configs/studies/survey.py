"""All modes of the KD survey times seeds, compared with labels only.

  python -m smskd_jax.study --config=configs/studies/survey.py:dataset=cifar10 --workdir=runs/survey

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850, finds
that most methods improve on labels only by little, and that KD with augmentation (`uda`) improves most. Its numbers, of
one seed and the best epoch by the test set (our column `oracle`), are shown beside ours for its pair of networks on
CIFAR-10: Table 4 for epochs=350, else Table 3. The survey's second teacher of mkd is a WRN-22-4; ours is `teachers`.
docs/results.md has results at a smaller budget.

  nokd kd allkd kdparam triplet mkd uda uda_nokd takd ab oh rkd pkd sfd stl blind    the modes
  rkd_attention    with the attention term, which the survey's code computes and does not add
  sfd_mean         mean over the batch instead of its worst image
  oh_running       teacher with running batch statistics, as in evaluation
  mkd_tcp          teachers weighted per image by their true-class probability

Teachers, and the assistants of takd, are trained once for all modes and seeds: differences between modes are those of
these teachers. Teachers learn from all training images except those of `validation`, assistants from the student's.
`stl` is included if `unlabeled` names its images, as tfds:stl10. kdparam trains a student for each of 25 settings, more
than all other modes together: temperatures=2+5,weights=0.5+0.9 reduces them to four. Cost: see --dry_run.

Arguments: those of configs/survey.py except mode (`seed` is the teachers'), and modes (of the above, joined by +;
default: all), seeds. The control is nokd, or the first of `modes` if nokd is not among them.
"""

from ml_collections import ConfigDict

from smskd_jax.config import network, study
from smskd_jax.errors import unknown_name_error
from smskd_jax.recipes import survey
from smskd_jax.recipes.common import parse_seeds, split_names

VARIANTS = {name: {"mode": name} for name in survey.MODES} | {
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
  """Returns the study for a string of arguments."""
  args = survey.parse_arguments(arg, modes="", seeds="0+1+2")
  arguments = {name: ConfigDict(args.to_dict() | VARIANTS[name]) for name in variant_names(args)}
  variants = {name: student_experiment(one) for name, one in arguments.items()}
  return study(
    seeds=parse_seeds(args.seeds),
    teachers=teacher_experiment(args, arguments.values()),
    variants=variants,
    control="nokd" if "nokd" in variants else "",
    published={name: value for name, value in published_accuracies(args).items() if name in variants},
  )


def variant_names(args):
  """Returns the names of the variants."""
  names = split_names(args.modes)
  for name in names:
    if name not in VARIANTS:
      raise unknown_name_error("config argument modes", name, VARIANTS)
  return names or [name for name in VARIANTS if name != "stl" or args.unlabeled]


def student_experiment(args):
  """Returns the experiment of a variant, without the stages of its teachers."""
  networks = survey.teacher_setup(args).networks | {"student": network(args.student)}
  return survey.make_experiment(args, networks, survey.MODES[args.mode](args))


def teacher_experiment(args, variants):
  """Returns the experiment that trains the teachers of all variants, each once; {} if there are none."""
  setups = [survey.teacher_setup(variant) for variant in variants]
  networks = {name: entry for setup in setups for name, entry in setup.networks.items()}
  stages = {stage.network: stage for setup in setups for stage in setup.stages}
  return survey.make_experiment(args, networks, list(stages.values())) if stages else {}


def published_accuracies(args):
  """Returns the survey's numbers if the arguments are the survey's setting."""
  is_pair = (args.teacher, args.student) == ("survey_resnet26", "survey_resnet8")
  if not is_pair or args.dataset not in ("cifar10", "tfds:cifar10"):
    return {}
  return TABLE_4 if args.epochs == 350 else TABLE_3
