"""Does the order of the methods matter? Every order of three methods, one of each family.

  python -m smskd_jax.study --workdir=runs/orders --config=configs/studies/orders.py:pair=resnet56-resnet20

By protocol=equal each stage has as many epochs as the others. Orders that begin alike share their beginnings: of three
methods fifteen stages are trained, not eighteen. The control is the order of `methods`.

Arguments: pair, methods (joined by +), seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py but teacher and student.
"""

import itertools

from smskd_jax.recipes import smskd, smskd_tables


def get_config(arg=None):
  """The study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg, pair="resnet56-resnet20", methods="fitnet+rkd+kd", protocol="equal"
  )
  of = smskd_tables.make_stage_builder(args)
  orders = itertools.permutations(smskd.parse_methods("methods", args.methods))
  return smskd_tables.make_study(args, {"+".join(order): of.sequential(*order) for order in orders})
