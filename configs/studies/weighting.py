"""Weightings of the reference term, compared: the future work that the SMSKD paper names.

  python -m smskd_jax.study --workdir=runs/weighting --config=configs/studies/weighting.py:pair=resnet56-resnet20

Every weighting of smskd_jax/training/reference.py at equal budget. With normalize=True each is divided by its mean over
the batch: they then differ in which images they hold and not in how much. The control is `constant`.

Arguments: pair, methods (of the stages, joined by +), normalize, seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py
but teacher, student and weighting.
"""

from smskd_jax.recipes import smskd, smskd_tables
from smskd_jax.training.reference import LEARNED, WEIGHTINGS


def get_config(arg=None):
  """The study for a string of arguments."""
  args = smskd_tables.parse_arguments(arg, pair="resnet56-resnet20", methods="at+kd", normalize=False)
  of, methods = smskd_tables.make_stage_builder(args), smskd.parse_methods("methods", args.methods)
  variants = {}
  for name in WEIGHTINGS:
    anchor = {"weighting": name, "normalize": args.normalize and name not in ("constant", LEARNED)}
    if name == "constant":
      anchor["tcp_temperature"] = 1.0
    variants[name] = of.sequential(*methods, **anchor)
  return smskd_tables.make_study(args, variants, control="constant")
