"""SMSKD, taken apart: reference, TCP, stages and warm start, at equal total epochs.

  python -m smskd_jax.study --workdir=runs/ablation --config=configs/studies/ablation.py:dataset=cifar100

Tian, Huang, Tang, Yao, "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657, claims that training in stages beats joint training, that the reference keeps what
earlier stages taught, and that TCP adds to it; it has no public code. Each claim is a row here, against `smskd`.

  smskd          one method a stage, anchored by the stage before, weight 1 - TCP: our reading
  no_reference   the stages alone
  constant       the reference with the weight 1 for all images
  mean_of_tcp    1 - TCP, divided by its mean over the batch: its distribution without its size
  shuffled       1 - TCP of another image: its distribution on the wrong images
  tcp            TCP: the opposite reading
  joint          all methods in one stage
  alternating    all methods in one stage, taking turns epoch by epoch
  restart        each stage from fresh weights, anchored all the same
  last_alone     the last method for all epochs: one long stage
  nokd           labels alone

Arguments: those of smskd_jax/studies/recipe.py.
"""

from smskd_jax.studies import recipe


def get_config(arg=None):
  """The study for a string of arguments."""
  args = recipe.parse(arg)
  methods, epochs = args.method_list, args.epochs
  weighted = lambda **reference: recipe.sequence(args, methods, reference=reference)
  return recipe.make(
    args,
    {
      "smskd": recipe.sequence(args, methods),
      "no_reference": weighted(stage="none"),
      "constant": weighted(weighting="constant"),
      "mean_of_tcp": weighted(normalize=True),
      "shuffled": weighted(weighting="shuffled"),
      "tcp": weighted(weighting="tcp"),
      "joint": [recipe.student(args, methods, epochs)],
      "alternating": [recipe.student(args, methods, epochs, alternate_epochs=1)],
      "restart": recipe.sequence(args, methods, start="fresh"),
      "last_alone": [recipe.student(args, methods[-1:], epochs)],
      "nokd": [recipe.student(args, (), epochs)],
    },
    control="smskd",
  )
