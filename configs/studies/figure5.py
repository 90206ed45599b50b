"""Figure 5 of the SMSKD paper: one to five stages, or more.

  python -m smskd_jax.study --workdir=runs/figure5 --config=configs/studies/figure5.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657: gains level off after two stages. Which methods the stages have is not in the text;
those here are our choice. The third and each further stage has 90 more epochs of 240, in which the rate begins again at
0.005 and drops after each 30: longer variants cost more.

  1_stage, 2_stages, ...   the first so many of `methods`; each shares all its stages with the next one

Arguments: pair, methods (joined by +), seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py but teacher and student.
"""

from smskd_jax.recipes import smskd, smskd_tables


def get_config(arg=None):
  """The study for a string of arguments."""
  args = smskd_tables.parse_arguments(arg, pair="resnet56-resnet20", methods="at+kd+vid+crd+pkt")
  of, methods = smskd_tables.make_stage_builder(args), smskd.parse_methods("methods", args.methods)
  variants = {"1_stage": of.single_method(methods[0])}
  variants |= {f"{n}_stages": of.sequential(*methods[:n]) for n in range(2, len(methods) + 1)}
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
