"""Table 3 of the SMSKD paper: an ablation of stages, the reference and its weights.

  python -m smskd_jax.study --workdir=runs/table3 --config=configs/studies/table3.py:pair=wrn_40_2-wrn_16_2

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657.

  kd             KD alone
  at.alone       AT alone
  at.stages      AT, then KD, without a reference
  at.constant    with the reference, weight 1 for every image
  at.tcp         weighted by the reference's true-class probability: SMSKD

`more=True` adds variants that the paper does not have: `at.teacher_tcp` (as in the abstract),
`at.one_minus_teacher_tcp`, `at.shuffled` (the same weights on other images), and `at.temperature_4` (reference term and
TCP at temperature 4). Cost: see --dry_run.

Arguments: pair, methods (joined by +), second, seeds, more, and `ARGUMENTS` of smskd_jax/recipes/smskd.py except
teacher and student.
"""

from smskd_jax.recipes import smskd, smskd_tables

NOTES = (
  "KD alone on wrn_40_2-wrn_16_2 is 74.18 in the paper's Table 1 and 75.34 in its Table 3.",
  "In the paper weights by TCP hurt RKD (75.28 to 74.99) and PKT (75.66 to 75.09).",
)
MORE_VARIANTS = {
  "teacher_tcp": {"weighting": "teacher_tcp"},
  "one_minus_teacher_tcp": {"weighting": "one_minus_teacher_tcp"},
  "shuffled": {"weighting": "shuffled_reference_tcp"},
  "temperature_4": {"temperature": 4.0, "tcp_temperature": 4.0},
}


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg, pair="wrn_40_2-wrn_16_2", methods="+".join(smskd_tables.METHODS), second="kd", more=False
  )
  builder, second = smskd_tables.make_stage_builder(args), smskd.parse_method("second", args.second)
  is_published = (args.pair, second) == (smskd_tables.TABLE_3_PAIR, "kd")
  variants, claims = {second: builder.single_method(second)}, []
  published = {second: smskd_tables.TABLE_3_KD} if is_published else {}
  for name in smskd.parse_methods("methods", args.methods):
    variants |= {
      f"{name}.alone": builder.single_method(name),
      f"{name}.stages": builder.sequential(name, second, stage="none"),
      f"{name}.constant": builder.sequential(name, second, weighting="constant", tcp_temperature=1.0),
      f"{name}.tcp": builder.sequential(name, second),
    }
    row = smskd_tables.TABLE_3.get(name) if is_published else None
    steps = [f"{name}.{step}" for step in ("alone", "stages", "constant", "tcp")]
    published |= dict(zip(steps, row, strict=True)) if row else {}
    claims += [
      (better, worse, smskd_tables.claimed_difference(published.get(better), published.get(worse)))
      for worse, better in zip(steps, steps[1:], strict=False)
    ]
    if args.more:
      for suffix, options in MORE_VARIANTS.items():
        variants[f"{name}.{suffix}"] = builder.sequential(name, second, **options)
        claims.append((f"{name}.tcp", f"{name}.{suffix}", ""))
  notes = (smskd_tables.budget_note(args, "CIFAR-100"), *(NOTES if is_published else ()))
  return smskd_tables.make_study(
    args, variants, control=second, published=published, claims=claims, notes=notes
  )
