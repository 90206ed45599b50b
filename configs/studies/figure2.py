"""Figure 2 of the SMSKD paper: combinations of two methods in stages, against each method alone.

  python -m smskd_jax.study --workdir=runs/figure2 --config=configs/studies/figure2.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657. Its text has the gains of FitNets then CRD (+2.50 over FitNets) and FitNets then KD
(+2.32), and Table 1 those of other methods before KD. According to the paper CRD then VID is slightly below CRD alone,
and DKD gains with KD and with AT as the others do; the order of these two is not stated. Cost: see --dry_run.

Arguments: pair, combinations (joined by /, the methods of each by +), seeds, and `ARGUMENTS` of
smskd_jax/recipes/smskd.py except teacher and student.
"""

from smskd_jax.errors import UserError
from smskd_jax.recipes import smskd, smskd_tables

COMBINATIONS = "fitnet+kd/fitnet+crd/at+kd/vid+kd/crd+kd/crd+vid/at+crd/dkd+kd/at+dkd"
CLAIMS = {
  ("fitnet", "crd"): "+2.50",
  ("fitnet", "kd"): "+2.32",
  ("at", "kd"): "+1.80",
  ("vid", "kd"): "+1.65",
  ("crd", "kd"): "+0.53",
  ("crd", "vid"): "-",
  ("dkd", "kd"): "+",
  ("at", "dkd"): "+",
}


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(arg, pair="resnet56-resnet20", combinations=COMBINATIONS)
  combinations = [smskd.parse_methods("combinations", part) for part in args.combinations.split("/")]
  for methods in combinations:
    if len(methods) < 2:
      raise UserError(f"config argument combinations: {methods[0]!r} is one method; join two by +, as at+kd")
  builder, is_published = smskd_tables.make_stage_builder(args), args.pair == "resnet56-resnet20"
  single_methods = dict.fromkeys(name for methods in combinations for name in methods)
  variants = {name: builder.single_method(name) for name in single_methods}
  variants |= {"+".join(methods): builder.sequential(*methods) for methods in combinations}
  claims = []
  for methods in combinations:
    combination, claim = "+".join(methods), CLAIMS.get(methods, "") if is_published else ""
    claims += [(combination, methods[0], claim), *((combination, other, "") for other in methods[1:])]
  return smskd_tables.make_study(
    args,
    variants,
    control=combinations[0][0],
    claims=claims,
    notes=(smskd_tables.budget_note(args, "CIFAR-100"),),
  )
