"""SMSKD on CIFAR by the recipe that the field compares on (CRD's), from one line.

  python -m smskd_jax.main --workdir=runs/cifar \\
    --config=configs/cifar.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=fitnet+kd,epochs=240

The recipe: SGD with momentum 0.9 and decay 5e-4, batch 64, rate 0.05 times 0.1 after 150, 180 and 210 of 240 epochs,
crops of the image padded by 4, flips (Tian, Krishnan, Isola, ICLR 2020, https://arxiv.org/abs/1910.10699; the rate,
weights and temperature as in its public code). Its published numbers on CIFAR-100, resnet56 -> resnet20, are the
authors' and not ours: teacher 72.34, student 69.06, KD 70.66, FitNet 69.21, RKD 69.61. SMSKD is reported, second-hand,
at +2.32 for FitNet then KD. No run of ours is quoted here yet.

What SMSKD leaves open is our reading: the weights of the reference term, and how stages share the epochs.
  budget=total  the stages share `epochs` evenly, so that a student costs what a baseline costs
  budget=full   every stage has all `epochs`
  mode=joint    one stage with all methods at once: the ablation

Arguments: dataset, folder, teacher, student, stages (joined by +), epochs, teacher_epochs (0: as epochs), budget, mode,
batch_size, learning_rate, validation, seed, reference_weight.
"""

from smskd_jax.config import experiment, method, network, parse_arg, stage
from smskd_jax.errors import UserError, unknown

# method -> (weight of the method, weight of cross-entropy beside it), the values behind CRD's table.
WEIGHTS = {
  "fitnet": (100.0, 1.0),
  "kd": (0.9, 0.1),
  "rkd": (1.0, 1.0),
}


def get_config(arg=None):
  """The config for a string of arguments."""
  args = parse_arg(
    arg,
    dataset="cifar100",
    folder="",
    teacher="resnet56",
    student="resnet20",
    stages="fitnet+kd",
    epochs=240,
    teacher_epochs=0,
    budget="total",
    mode="sequential",
    batch_size=64,
    learning_rate=0.05,
    validation=0.0,
    seed=0,
    reference_weight=1.0,
  )
  recipe = {
    "batch_size": args.batch_size,
    "optimizer": {"name": "sgd", "learning_rate": args.learning_rate},
    "schedule": {"name": "multistep"},
  }
  teacher = stage("teacher", epochs=args.teacher_epochs or args.epochs, **recipe)
  return experiment(
    seed=args.seed,
    data={"source": args.dataset, "folder": args.folder, "validation": args.validation},
    networks={"teacher": network(args.teacher), "student": network(args.student)},
    stages=(teacher, *student_stages(args, recipe)),
  )


def student_stages(args, recipe):
  """The student's stages: one a method, or all methods in one."""
  names = args.stages.split("+")
  for name in names:
    if name not in WEIGHTS:
      raise unknown("config argument stages", name, WEIGHTS)
  if args.mode == "joint":
    terms = tuple(method(name, weight=WEIGHTS[name][0]) for name in names)
    task_weight = min(WEIGHTS[name][1] for name in names)
    return [student_stage(terms, task_weight, args.epochs, recipe)]
  if args.mode != "sequential":
    raise unknown("config argument mode", args.mode, ("sequential", "joint"))
  return [
    student_stage(
      (method(name, weight=WEIGHTS[name][0]),),
      WEIGHTS[name][1],
      epochs,
      recipe,
      reference={"stage": "previous", "weight": args.reference_weight} if i else {},
    )
    for i, (name, epochs) in enumerate(zip(names, shares(args, len(names)), strict=True))
  ]


def student_stage(terms, task_weight, epochs, recipe, **fields):
  """A stage of the student."""
  return stage(
    "student",
    teachers=("teacher",),
    methods=terms,
    task_weight=task_weight,
    epochs=epochs,
    **recipe,
    **fields,
  )


def shares(args, count):
  """The epochs of each stage; what does not divide goes to the first stages."""
  if args.budget == "full":
    return [args.epochs] * count
  if args.budget != "total":
    raise unknown("config argument budget", args.budget, ("total", "full"))
  if args.epochs < count:
    raise UserError(
      f"config argument epochs: {args.epochs} cannot be shared by {count} stages; use budget=full"
    )
  share, rest = divmod(args.epochs, count)
  return [share + (i < rest) for i in range(count)]
