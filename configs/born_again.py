"""Born-again networks: each generation learns from the one before, which is of its own kind.

  python -m smskd_jax.main --workdir=runs/born_again \\
    --config=configs/born_again.py:dataset=cifar100,model=resnet20,generations=3

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born Again Neural Networks", ICML 2018,
https://arxiv.org/abs/1805.04770. Every generation starts from fresh weights and has the same budget; the first has
labels only. The paper's generations learn from the teacher's outputs with temperature 1 and from the labels with equal
weight (BAN+L); its DenseNets and Wide ResNets, and their budgets, are not ours: no number of it is reproduced here.

Arguments: dataset, folder, model, width, generations (students after the first network), epochs, batch_size,
learning_rate, padding, temperature, weight (of distillation; cross-entropy has 1 - weight), validation, seed.
"""

from smskd_jax.config import experiment, method, network, parse_arg, stage
from smskd_jax.errors import UserError


def get_config(arg=None):
  """The config for a string of arguments."""
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
    stages=tuple(generation(args, name, names[i - 1] if i else None) for i, name in enumerate(names)),
  )


def generation(args, name, parent):
  """One generation: from labels alone, or from its parent and labels."""
  taught = {}
  if parent is not None:
    term = method("kd", weight=args.weight, temperature=args.temperature)
    taught = {"teachers": (parent,), "methods": (term,), "task_weight": 1 - args.weight}
  return stage(
    name,
    name=name,
    epochs=args.epochs,
    batch_size=args.batch_size,
    augment={"crop_flip": {"padding": args.padding, "flip": True}},
    optimizer={"name": "sgd", "learning_rate": args.learning_rate},
    schedule={"name": "multistep"},
    **taught,
  )
