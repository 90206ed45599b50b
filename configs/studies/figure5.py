"""Figure 5 of the SMSKD paper: one to five stages.

  python -m smskd_jax.study --workdir=runs/figure5 --config=configs/studies/figure5.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657: gains level off after two stages. The text does not name the methods of the stages;
those here are a choice of this config. The third and each further stage adds 90 epochs to the 240, in which the rate
begins at 0.005 and drops after each 30: longer variants cost more. Cost: see --dry_run.

  1_stage, 2_stages, ...   the first methods of `methods`; each variant shares all its stages with the next one

Arguments: pair, methods (joined by +), seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py except teacher and student.
"""

from smskd_jax.recipes import smskd, smskd_tables


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(arg, pair="resnet56-resnet20", methods="at+kd+vid+crd+pkt")
  builder, methods = smskd_tables.make_stage_builder(args), smskd.parse_methods("methods", args.methods)
  variants = {"1_stage": builder.single_method(methods[0])}
  variants |= {f"{n}_stages": builder.sequential(*methods[:n]) for n in range(2, len(methods) + 1)}
  names = list(variants)
  claims = [
    (more, fewer, "+" if fewer == "1_stage" else "") for fewer, more in zip(names, names[1:], strict=False)
  ]
  return smskd_tables.make_study(
    args,
    variants,
    control="1_stage",
    claims=claims,
    notes=(smskd_tables.budget_note(args, "CIFAR-100"), "The paper: accuracy levels off after two stages."),
  )
