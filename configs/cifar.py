"""SMSKD on CIFAR by the recipe that the field compares on (CRD's), from one line.

  python -m smskd_jax.main --workdir=runs/cifar \\
    --config=configs/cifar.py:dataset=cifar100,teacher=resnet56,student=resnet20,stages=fitnet+kd,epochs=240

The recipe: SGD with momentum 0.9 and decay 5e-4, batch 64, rate 0.05 (MobileNetV2 and ShuffleNets: 0.01) times 0.1
after 150, 180 and 210 of 240 epochs, crops of the image padded by 4, flips (Tian, Krishnan, Isola, ICLR 2020,
https://arxiv.org/abs/1910.10699; the rate, weights and temperature as in its public code). Its published numbers on
CIFAR-100, resnet56 -> resnet20, are the authors' and not ours: teacher 72.34, student 69.06, KD 70.66, FitNet 69.21,
RKD 69.61. SMSKD is reported, second-hand, at +2.32 for FitNet then KD. No run of ours is quoted here yet.

What SMSKD leaves open is our reading: the weights of the reference term, and how stages share the epochs.
  budget=total  the stages share `epochs` evenly, so that a student costs what a baseline costs
  budget=full   every stage has all `epochs`
  mode=joint    one stage with all methods at once: the ablation

`stages` names recipes of smskd_jax/literature.csv: methods with the outer weights that their authors published,
for the pair of networks where they differ, and kd_ls, dkd_ls and ctkd, which are kd and dkd inside a plug-in. What is
not taken over: batch sizes, rates and views of a method's own, which the column `source` names. stages=simkd alone ends
in the teacher's classifier; among other stages the student keeps its own. With dml the student has a peer of its own
kind. optimizer=dot is DOT.

teacher_variables=FOLDER takes the teacher from there, as `python -m smskd_jax.import_torch` or another run has left it,
and trains none.

Arguments: dataset, folder, teacher, teacher_variables, student, stages (joined by +), epochs, teacher_epochs (0: as
epochs), budget, mode, batch_size, learning_rate (0: the recipe's), optimizer, validation, seed, reference_weight.
"""

from smskd_jax import literature
from smskd_jax.config import experiment, network, parse_arg, stage
from smskd_jax.studies import published


def get_config(arg=None):
  """The config for a string of arguments."""
  args = parse_arg(
    arg,
    dataset="cifar100",
    folder="",
    teacher="resnet56",
    teacher_variables="",
    student="resnet20",
    epochs=240,
    teacher_epochs=0,
    batch_size=64,
    learning_rate=0.0,
    optimizer="sgd",
    validation=0.0,
    seed=0,
    **published.ARGUMENTS,
  )
  common = {"batch_size": args.batch_size, "schedule": {"name": "multistep"}}
  recipe = common | {"optimizer": {"name": args.optimizer, "learning_rate": rate(args, args.student)}}
  alone = common | {"optimizer": {"name": "sgd", "learning_rate": rate(args, args.teacher)}}
  trained = stage("teacher", epochs=args.teacher_epochs or args.epochs, **alone)
  return experiment(
    seed=args.seed,
    data={"source": args.dataset, "folder": args.folder, "validation": args.validation},
    networks={
      "teacher": network(args.teacher, variables=args.teacher_variables),
      "student": student_network(args),
    },
    stages=(*(() if args.teacher_variables else (trained,)), *published.stages(args, recipe)),
  )


def rate(args, name):
  """The learning rate of a network."""
  return args.learning_rate or literature.learning_rate(name)


def student_network(args):
  """The student, or the network made of it that its methods need."""
  if args.stages == "simkd":
    return network("simkd", body=args.student, teacher=args.teacher)
  if "dml" in args.stages.split("+"):
    return network("cohort", first=args.student, peer=args.student)
  return network(args.student)
