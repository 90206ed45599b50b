"""Figure 4 of the SMSKD paper: weight of the reference term against the epoch of the transition.

  python -m smskd_jax.study --workdir=runs/figure4 --config=configs/studies/figure4.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657: with AT then KD, every cell of the grid is above AT alone (70.36) and KD alone
(70.35); the best lambda_r is 0.3 at epoch 120 and 1.0 at epoch 210, and accuracy rises most from 0 to 0.3.

  at, kd           each method alone
  120_lambda_0.3   the second stage begins after 120 of 240 epochs, lambda_r is 0.3; 0: no reference

The first stages of all cells are one run of AT, cut at the transitions and trained once instead of four times. The
report's figure of IoU and forgotten images against lambda_r corresponds to the paper's Figure 3. Cost: see --dry_run.

Arguments: pair, first, second, lambdas and transitions (in epochs of 240, joined by +; they scale with `epochs`),
seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py except teacher, student and transition.
"""

from smskd_jax.errors import UserError
from smskd_jax.recipes import smskd, smskd_tables
from smskd_jax.recipes.common import parse_numbers


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg,
    pair="resnet56-resnet20",
    first="at",
    second="kd",
    lambdas="0+0.1+0.3+0.5+0.8+1.0",
    transitions="120+150+180+210",
  )
  if args.transition or args.protocol != "paper":
    raise UserError(
      "config argument transition: this study has a grid of them, of protocol=paper; use transitions="
    )
  transitions = parse_numbers("transitions", args.transitions, int)
  cuts = [round(epoch * args.epochs / smskd.PAPER_EPOCHS) for epoch in transitions]
  if cuts != sorted(set(cuts)) or not 0 < cuts[0] <= cuts[-1] < args.epochs:
    raise UserError(
      f"config argument transitions: {args.transitions} are the epochs {cuts} of {args.epochs}; they must ascend "
      f"inside {args.epochs} epochs"
    )
  first, second = smskd.parse_method("first", args.first), smskd.parse_method("second", args.second)
  builder, weights = smskd_tables.make_stage_builder(args), parse_numbers("lambdas", args.lambdas, float)
  pieces = builder.single_method(first, cuts)
  variants = {first: pieces, second: builder.single_method(second)}
  for i, cut in enumerate(cuts):
    for weight in weights:
      last = second_stage(args, builder.fields, second, cut, weight)
      variants[f"{transitions[i]}_lambda_{weight:g}"] = [*pieces[: i + 1], last]
  alone = {first: 70.36, second: 70.35}
  is_published = (args.pair, first, second) == ("resnet56-resnet20", "at", "kd")
  cells = [name for name in variants if name not in alone]
  return smskd_tables.make_study(
    args,
    variants,
    control=first,
    published=alone if is_published else {},
    claims=[(cell, one, "+" if is_published else "") for cell in cells for one in alone],
    notes=(smskd_tables.budget_note(args, "CIFAR-100"),),
  )


def second_stage(args, recipe, method, epoch, weight):
  """Returns the stage that begins at an epoch, with a weight of the reference term; 0: without a reference."""
  reference = smskd.reference_fields(args, **({"weight": weight} if weight else {"stage": "none"}))
  span = smskd.Span(args.epochs - epoch, epoch, args.epochs)
  return smskd.student_stage(
    args, (method,), span, recipe, name=method, reference=reference, carry_over=args.carry_over
  )
