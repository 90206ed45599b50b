"""Does the order matter? Every order of three methods, one of each family.

  python -m smskd_jax.study --workdir=runs/orders --config=configs/studies/orders.py:dataset=cifar100

Orders that begin alike share their beginnings: of three methods fifteen stages are trained, not eighteen. The control
is the order of `methods`: maps first, then relations, then logits.

Arguments: those of smskd_jax/studies/recipe.py.
"""

import itertools

from smskd_jax.studies import recipe


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg)
  orders = itertools.permutations(args.method_list)
  return recipe.make(args, {"+".join(order): recipe.sequence(args, order) for order in orders})
