"""Table 2 of the SMSKD paper: Table 1 on Tiny-ImageNet.

  python -m smskd_jax.study --workdir=runs/table2 --config=configs/studies/table2.py:pair=vgg13-vgg8,folder=data

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657. The paper's pairs are resnet56-resnet20 and vgg13-vgg8; images of 64x64 pixels are
flipped and not cropped. `folder` contains tiny-imagenet-200 as its archive unpacks. Cost: see --dry_run.

Variants and arguments: those of configs/studies/table1.py.
"""

from smskd_jax.recipes import smskd_tables

NOTES = (
  "The paper's text gives FitNets' gain as 2.95 points for resnet56-resnet20, and its table has 2.59.",
  "In the paper RKD, CC and PKT are best under DLA for resnet56-resnet20.",
)


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg,
    pair="resnet56-resnet20",
    methods="+".join(smskd_tables.METHODS),
    second="kd",
    dataset="tiny_imagenet",
  )
  return smskd_tables.pair_table(args, smskd_tables.TABLE_2, "Tiny-ImageNet", NOTES)
