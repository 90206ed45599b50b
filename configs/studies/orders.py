"""Order of the methods: every order of three methods, one of each family.

  python -m smskd_jax.study --workdir=runs/orders --config=configs/studies/orders.py:pair=resnet56-resnet20

With protocol=equal all stages have equal numbers of epochs. Orders with the same first methods share these stages: of
three methods fifteen stages are trained, not eighteen. The control is the order of `methods`. Cost: see --dry_run.

Arguments: pair, methods (joined by +), seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py except teacher and student.
"""

import itertools

from smskd_jax.recipes import smskd, smskd_tables


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg, pair="resnet56-resnet20", methods="fitnet+rkd+kd", protocol="equal"
  )
  builder = smskd_tables.make_stage_builder(args)
  orders = itertools.permutations(smskd.parse_methods("methods", args.methods))
  return smskd_tables.make_study(args, {"+".join(order): builder.sequential(*order) for order in orders})
