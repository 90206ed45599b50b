"""Figure 4 of the SMSKD paper: the weight of the reference against the epoch at which the second stage begins.

  python -m smskd_jax.study --workdir=runs/figure4 --config=configs/studies/figure4.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657: AT then KD, every cell of the grid is above AT alone (70.36) and KD alone (70.35); the
best lambda_r is 0.3 at epoch 120 and 1.0 at 210, and accuracy rises most from 0 to 0.3.

  at, kd           each alone
  120_lambda_0.3   the second stage begins after 120 of 240 epochs, lambda_r is 0.3; 0: no reference

The first stages of all cells are one run of AT, cut at the transitions: it is trained once and not four times. The
report's figure of IoU and forgotten images against lambda_r is the paper's Figure 3.

Arguments: pair, first, second, lambdas and transitions (in epochs of 240, joined by +; they scale with `epochs`),
seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py but teacher, student and transition.
"""

from smskd_jax.errors import UserError
from smskd_jax.recipes import smskd, smskd_tables


def get_config(arg=None):
  """The study for a string of arguments."""
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
  of, chosen = smskd_tables.make_stage_builder(args), smskd_tables.parse_numbers(args, "transitions", int)
  cuts = [round(epoch * args.epochs / smskd.PAPER_EPOCHS) for epoch in chosen]
  if cuts != sorted(set(cuts)) or not 0 < cuts[0] <= cuts[-1] < args.epochs:
    raise UserError(
      f"config argument transitions: {args.transitions} are the epochs {cuts} of {args.epochs}; they must ascend "
      f"inside {args.epochs} epochs"
    )
  method, second = smskd.parse_method("first", args.first), smskd.parse_method("second", args.second)
  first = of.single_method(method, cuts)
  variants = {method: first, second: of.single_method(second)}
  for i, (epoch, cut) in enumerate(zip(chosen, cuts, strict=True)):
    for weight in smskd_tables.parse_numbers(args, "lambdas", float):
      anchor = smskd.reference_fields(args, **({"weight": weight} if weight else {"stage": "none"}))
      span = smskd.Span(args.epochs - cut, cut, args.epochs)
      last = smskd.student_stage(
        args, (second,), span, of.fields, name=second, reference=anchor, carry_over=args.carry_over
      )
      variants[f"{epoch}_lambda_{weight:g}"] = [*first[: i + 1], last]
  alone = {method: 70.36, second: 70.35}
  known = (args.pair, method, second) == ("resnet56-resnet20", "at", "kd")
  cells = [name for name in variants if name not in alone]
  return smskd_tables.make_study(
    args,
    variants,
    control=method,
    published=alone if known else {},
    claims=[(cell, one, "+" if known else "") for cell in cells for one in alone],
    notes=(smskd_tables.budget_note(args, "CIFAR-100"),),
  )
