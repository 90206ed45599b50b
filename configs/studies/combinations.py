"""Which methods go together: pairs and triples, trained in stages, beside each alone.

  python -m smskd_jax.study --workdir=runs/combinations --config=configs/studies/combinations.py:dataset=cifar100

The SMSKD paper says that most combinations help and that CRD with VID hurts. Each combination is in the order of
`methods`; the control is `kd` alone, or the last of the methods.

Arguments: those of smskd_jax/studies/recipe.py, and largest (methods in a combination).
"""

import itertools

from smskd_jax.studies import recipe


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg, methods="fitnet+vid+rkd+crd+kd", largest=3)
  sizes = range(1, min(args.largest, len(args.method_list)) + 1)
  chosen = [methods for size in sizes for methods in itertools.combinations(args.method_list, size)]
  control = "kd" if "kd" in args.method_list else args.method_list[-1]
  return recipe.make(
    args, {"+".join(names): recipe.sequence(args, names) for names in chosen}, control=control
  )
