"""Which earlier stage anchors, how strongly, and how softly.

  python -m smskd_jax.study --workdir=runs/reference --config=configs/studies/reference.py:dataset=cifar100

The SMSKD paper gives neither lambda_r nor tau. The control is the stage before, with the recipe's weight and tau = 4.

Arguments: those of smskd_jax/studies/recipe.py, and reference_weights and temperatures (joined by +).
"""

from smskd_jax.errors import UserError
from smskd_jax.studies import recipe


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg, reference_weights="0.1+0.3+3.0+10.0", temperatures="1.0+2.0+8.0")
  methods = args.method_list
  anchored = lambda **reference: recipe.sequence(args, methods, reference=reference)
  variants = {"previous": anchored(), "none": anchored(stage="none"), "first": first(args, methods)}
  variants |= {f"weight_{w:g}": anchored(weight=w) for w in numbers(args, "reference_weights")}
  variants |= {f"tau_{t:g}": anchored(temperature=t) for t in numbers(args, "temperatures")}
  return recipe.make(args, variants)


def first(args, methods):
  """Every stage from the second on is anchored by the first."""
  return recipe.sequence(args, methods, reference={"stage": f"1_{methods[0]}"})


def numbers(args, name):
  """The numbers of an argument, joined by +."""
  try:
    return [float(part) for part in args[name].split("+")]
  except ValueError:
    raise UserError(f"config argument {name}: {args[name]!r} are not numbers joined by +") from None
