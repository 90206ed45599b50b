"""What should scale the reference, image by image? The future work that the SMSKD paper names.

  python -m smskd_jax.study --workdir=runs/weighting --config=configs/studies/weighting.py:dataset=cifar100

Every weighting of smskd_jax/training/weighting.py, each divided by its mean over the batch, so that they differ in
where they anchor and not in how much (`normalize=False`: as they are). The control is `constant`.

Arguments: those of smskd_jax/studies/recipe.py, and normalize.
"""

from smskd_jax.studies import recipe
from smskd_jax.training.weighting import WEIGHTINGS


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg, normalize=True)
  variants = {
    name: recipe.sequence(args, args.method_list, reference={"weighting": name, "normalize": args.normalize})
    for name in WEIGHTINGS
  }
  return recipe.make(args, variants, control="constant")
