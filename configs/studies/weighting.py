"""Weightings of the reference term, which the SMSKD paper names as future work.

  python -m smskd_jax.study --workdir=runs/weighting --config=configs/studies/weighting.py:pair=resnet56-resnet20

Every weighting of smskd_jax/training/reference.py at equal budget. With normalize=True each weighting is divided by its
mean over the batch: the weightings then differ in which images they weigh and not in the size of the term. The control
is `constant`. Cost: see --dry_run.

Arguments: pair, methods (of the stages, joined by +), normalize, seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py
except teacher, student and weighting.
"""

from smskd_jax.recipes import smskd, smskd_tables
from smskd_jax.training.reference import LEARNED, WEIGHTINGS


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(arg, pair="resnet56-resnet20", methods="at+kd", normalize=False)
  builder, methods = smskd_tables.make_stage_builder(args), smskd.parse_methods("methods", args.methods)
  variants = {}
  for name in WEIGHTINGS:
    reference = {"weighting": name, "normalize": args.normalize and name not in ("constant", LEARNED)}
    if name == "constant":
      reference["tcp_temperature"] = 1.0
    variants[name] = builder.sequential(*methods, **reference)
  return smskd_tables.make_study(args, variants, control="constant")
