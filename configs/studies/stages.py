"""How many stages: one to six, with equal total epochs or with all epochs for each.

  python -m smskd_jax.study --workdir=runs/stages --config=configs/studies/stages.py:dataset=cifar100,budget=full

With budget=full the variants share their beginnings: six stages are trained, not twenty-one. With budget=total each has
stages of its own length, and nothing is shared. `control` is one stage.

Arguments: those of smskd_jax/studies/recipe.py, and budget (total or full), most (stages). `methods` should name as
many as `most`; fewer are repeated in turn.
"""

import itertools

from smskd_jax.errors import UserError, unknown
from smskd_jax.studies import recipe


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg, budget="total", most=6, methods="fitnet+at+sp+rkd+dkd+kd")
  if args.budget not in ("total", "full"):
    raise unknown("config argument budget", args.budget, ("total", "full"))
  if args.most < 1:
    raise UserError(f"config argument most: {args.most} is too small; it must be at least 1")
  methods = list(itertools.islice(itertools.cycle(args.method_list), args.most))
  variants = {
    f"{count}_stages": recipe.sequence(args, methods[:count], full=args.budget == "full")
    for count in range(1, args.most + 1)
  }
  return recipe.make(args, variants, control="1_stages")
