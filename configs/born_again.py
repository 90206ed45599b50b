"""Born-again networks: each generation learns from the previous one, a network of the same architecture.

  python -m smskd_jax.main --workdir=runs/born_again \\
    --config=configs/born_again.py:dataset=cifar100,model=resnet20,generations=3

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born Again Neural Networks", ICML 2018,
https://arxiv.org/abs/1805.04770. Every generation starts from scratch and has the same budget; the first learns from
labels only. As in the paper's BAN+L, the later ones learn from labels and from the outputs of the previous generation
at temperature 1, with equal weights. The paper's DenseNets and Wide ResNets and its budgets are different: none of its
numbers is reproduced here. Cost: (generations + 1) times the training of one network; see --dry_run.

Arguments: dataset, folder, model, width, generations (students after the first network), epochs, batch_size,
learning_rate, padding, temperature, weight (of distillation; cross-entropy has 1 - weight), validation, seed.
"""

from smskd_jax.config import experiment, method, network, parse_arg, stage
from smskd_jax.errors import UserError


def get_config(arg=None):
  """Returns the experiment for a string of arguments."""
  args = parse_arg(
    arg,
    dataset="cifar100",
    folder="",
    model="resnet20",
    width=1.0,
    generations=3,
    epochs=240,
    batch_size=64,
    learning_rate=0.05,
    padding=4,
    temperature=1.0,
    weight=0.5,
    validation=0.0,
    seed=0,
  )
  if args.generations < 1:
    raise UserError(f"config argument generations: {args.generations} is too small; it must be at least 1")
  if not 0 <= args.weight <= 1:
    raise UserError(f"config argument weight: {args.weight} is not in [0, 1]")
  names = [f"generation_{i}" for i in range(args.generations + 1)]
  return experiment(
    seed=args.seed,
    data={"source": args.dataset, "folder": args.folder, "validation": args.validation},
    networks={name: network(args.model, width=args.width) for name in names},
    stages=tuple(generation_stage(args, name, names[i - 1] if i else None) for i, name in enumerate(names)),
  )


def generation_stage(args, name, teacher):
  """Returns the stage of one generation; without a teacher it learns from labels only."""
  distillation = {}
  if teacher is not None:
    kd = method("kd", weight=args.weight, temperature=args.temperature)
    distillation = {"teachers": (teacher,), "methods": (kd,), "task_weight": 1 - args.weight}
  return stage(
    name,
    name=name,
    epochs=args.epochs,
    batch_size=args.batch_size,
    augment={"crop_flip": {"padding": args.padding, "flip": True}},
    optimizer={"name": "sgd", "learning_rate": args.learning_rate},
    schedule={"name": "multistep"},
    **distillation,
  )
