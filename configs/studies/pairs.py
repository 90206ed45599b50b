"""Does it hold for other networks? SMSKD, its last method alone and labels alone, for the literature's pairs.

  python -m smskd_jax.study --workdir=runs/pairs --config=configs/studies/pairs.py:dataset=cifar100,pairs=same

The pairs are those of Tables 1 and 2 of "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020,
https://arxiv.org/abs/1910.10699), on which most methods report: seven of one style (`same`) and six across (`cross`).
Of each pair, at equal total epochs:

  TEACHER-STUDENT.last_alone   the last of `methods` for all epochs: the control of the pair
  TEACHER-STUDENT.smskd        `methods` in order, one a stage, anchored by the stage before
  TEACHER-STUDENT.nokd         labels alone

Methods have their published weights for the pair, and every network its published rate. That paper's numbers for
CIFAR-100 stand beside `nokd` and `last_alone`; its rate falls in steps, ours as a cosine. SMSKD's own are not public:
second-hand, FitNet then KD gains 2.32 points over an unnamed baseline for resnet56 and resnet20.

Each teacher is trained once for all pairs that it teaches in, and a student without a teacher once for all its pairs.

Arguments: those of smskd_jax/studies/recipe.py but teacher and student; pairs (joined by +: TEACHER-STUDENT of any two
networks, same, cross, all); teacher_variables (folders joined by +, one for each teacher in the order of the pairs).
"""

from smskd_jax import literature, models
from smskd_jax.errors import UserError, unknown
from smskd_jax.studies import recipe
from smskd_jax.studies.config import study

SOME = "resnet56-resnet20+resnet32x4-resnet8x4+vgg13-MobileNetV2+wrn_40_2-ShuffleV1"
ALL = tuple("-".join(pair) for pair in literature.pairs())
GROUPS = {"same": ALL[:7], "cross": ALL[7:], "all": ALL}


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg, without=("teacher", "student"), pairs=SOME, methods="fitnet+kd")
  if len(args.method_list) < 2:
    raise UserError(
      f"config argument methods: {args.methods} alone is no sequence; join some by +, as fitnet+kd"
    )
  of_pairs = dict(zip(chosen(args), each(args), strict=True))
  variants = {
    f"{pair}.{name}": recipe.variant(of, stages)
    for pair, of in of_pairs.items()
    for name, stages in compared(of).items()
  }
  return study(
    seeds=args.seed_list,
    teachers=recipe.teachers(list(of_pairs.values())),
    variants=variants,
    controls={name: f"{name.partition('.')[0]}.last_alone" for name in variants},
    published=published(args, of_pairs),
  )


def chosen(args):
  """The pairs, each once."""
  names = [name for part in args.pairs.split("+") if part for name in GROUPS.get(part, (part,))]
  if not names:
    raise UserError(
      f"config argument pairs: there are none; join some by +, as {SOME}, or name a group, as same"
    )
  for name in names:
    parts = name.split("-")
    if len(parts) != 2:
      raise UserError(
        f"config argument pairs: {name!r} is not TEACHER-STUDENT, as resnet56-resnet20, nor a group"
      )
    for part in parts:
      if part not in models.NETWORKS:
        raise unknown("config argument pairs", part, models.NETWORKS)
  return list(dict.fromkeys(names))


def each(args):
  """The arguments of each pair."""
  pairs = [name.split("-") for name in chosen(args)]
  teachers = list(dict.fromkeys(teacher for teacher, _ in pairs))
  folders = [part for part in args.teacher_variables.split("+") if part] or [""] * len(teachers)
  if len(folders) != len(teachers):
    raise UserError(
      f"config argument teacher_variables: {len(folders)} for the teachers {', '.join(teachers)}; give a folder each"
    )
  given = dict(zip(teachers, folders, strict=True))
  return [recipe.pair(args, teacher, student, given[teacher]) for teacher, student in pairs]


def compared(args):
  """The student's stages of a pair, by the end of the variant's name."""
  methods, epochs = args.method_list, args.epochs
  return {
    "last_alone": [recipe.student(args, methods[-1:], epochs)],
    "smskd": recipe.sequence(args, methods),
    "nokd": [recipe.student(args, (), epochs)],
  }


def published(args, of_pairs):
  """The numbers of the paper, for the pairs and methods that it has."""
  if args.dataset not in ("cifar100", "tfds:cifar100"):
    return {}
  found = {pair: literature.pairs().get((of.teacher, of.student), {}) for pair, of in of_pairs.items()}
  names = {"last_alone": args.method_list[-1], "nokd": "nokd"}
  return {
    f"{pair}.{end}": numbers[name]
    for pair, numbers in found.items()
    for end, name in names.items()
    if name in numbers
  }
