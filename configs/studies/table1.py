"""Table 1 of the SMSKD paper: each method alone, with KD jointly (DLA), adaptively (SAKD), and in stages; CIFAR-100.

  python -m smskd_jax.study --workdir=runs/table1 --config=configs/studies/table1.py:pair=resnet56-resnet20

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657. The paper's pairs are resnet56-resnet20 and wrn_40_2-wrn_16_2. For these the report
has the paper's numbers beside ours, and verdicts on its claims that stages are better than either method alone, DLA
and SAKD.

  student       labels only
  kd            KD alone
  at.alone      AT alone
  at.dla        AT and KD jointly
  at.sakd       AT and KD at spots that a policy chooses for each image, with SAKD's published weights
  at.smskd      AT, then KD with the reference

Variants of a single method train it for all epochs; the first 150 of 240 are also the first stage of `smskd`, and are
trained once. Cost: see --dry_run; 7 methods are 30 variants and 38 student stages per seed.

Arguments: pair, methods (joined by +), second (the method of the second stage), seeds, and `ARGUMENTS` of
smskd_jax/recipes/smskd.py except teacher and student.
"""

from smskd_jax.recipes import smskd_tables

NOTES = (
  "KD alone on wrn_40_2-wrn_16_2 is 74.18 in the paper's Table 1 and 75.34 in its Table 3; against 75.34 stages are "
  "better in two of seven columns alone.",
  "The paper's 71.98 for wrn_16_2 from labels is the number of wrn_40_1 in the CRD paper (wrn_16_2 has 73.26 there).",
  "The paper counts AT's gains for resnet56-resnet20 from 70.63, and its table has 70.36.",
  "In the paper RKD is best under DLA.",
)


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg, pair="resnet56-resnet20", methods="+".join(smskd_tables.METHODS), second="kd"
  )
  return smskd_tables.pair_table(args, smskd_tables.TABLE_1, "CIFAR-100", NOTES)
