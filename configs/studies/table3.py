"""Table 3 of the SMSKD paper: an ablation of stages, the reference and its weights.

  python -m smskd_jax.study --workdir=runs/table3 --config=configs/studies/table3.py:pair=wrn_40_2-wrn_16_2

Tian et al., "Integrating Knowledge Distillation Methods: A Sequential Multi-Stage Framework", 2026,
https://arxiv.org/abs/2601.15657.

  kd             KD alone
  at.alone       AT alone
  at.stages      AT, then KD, without a reference
  at.constant    with the reference, weight 1 for every image
  at.tcp         weighted by the reference's true-class probability: SMSKD

Further `variants`, which the paper's table does not have: `student` (labels only), `at.dla` (both methods jointly, as
in Table 1), `at.teacher_tcp` (as in the abstract), `at.one_minus_teacher_tcp`, `at.shuffled` (the same weights on other
images), and `at.temperature_4` (reference term and TCP at temperature 4). Cost: see --dry_run.

Arguments: pair, methods and variants (each joined by +), second, seeds, and `ARGUMENTS` of smskd_jax/recipes/smskd.py
except teacher and student.
"""

from smskd_jax.errors import unknown_name_error
from smskd_jax.recipes import smskd, smskd_tables
from smskd_jax.recipes.common import split_names

NOTES = (
  "KD alone on wrn_40_2-wrn_16_2 is 74.18 in the paper's Table 1 and 75.34 in its Table 3.",
  "In the paper weights by TCP hurt RKD (75.28 to 74.99) and PKT (75.66 to 75.09).",
)
TABLE_3 = ("alone", "stages", "constant", "tcp")  # variants of the paper
BASELINES = ("student", "dla")
WEIGHTINGS = {
  "teacher_tcp": {"weighting": "teacher_tcp"},
  "one_minus_teacher_tcp": {"weighting": "one_minus_teacher_tcp"},
  "shuffled": {"weighting": "shuffled_reference_tcp"},
  "temperature_4": {"temperature": 4.0, "tcp_temperature": 4.0},
}


def get_config(arg=None):
  """Returns the study for a string of arguments."""
  args = smskd_tables.parse_arguments(
    arg,
    pair="wrn_40_2-wrn_16_2",
    methods="+".join(smskd_tables.METHODS),
    variants="+".join(TABLE_3),
    second="kd",
  )
  chosen = parse_variants(args.variants)
  builder, second = smskd_tables.make_stage_builder(args), smskd.parse_method("second", args.second)
  is_published = (args.pair, second) == (smskd_tables.TABLE_3_PAIR, "kd")
  variants, claims = {second: builder.single_method(second)}, []
  if "student" in chosen:
    variants["student"] = builder.label_only()
  published = {second: smskd_tables.TABLE_3_KD} if is_published else {}
  for name in smskd.parse_methods("methods", args.methods):
    stages = method_variants(builder, name, second)
    variants |= {f"{name}.{variant}": stages[variant] for variant in chosen if variant != "student"}
    row = smskd_tables.TABLE_3.get(name) if is_published else None
    published |= {f"{name}.{step}": x for step, x in zip(TABLE_3, row or (), strict=False) if step in chosen}
    claims += [(f"{name}.{better}", f"{name}.{worse}") for better, worse in compared(chosen)]
    claims += [(f"{name}.tcp", second)] if "tcp" in chosen else []
  differences = [
    (*claim, smskd_tables.claimed_difference(*(published.get(variant) for variant in claim)))
    for claim in claims
  ]
  notes = (smskd_tables.budget_note(args, "CIFAR-100"), *(NOTES if is_published else ()))
  return smskd_tables.make_study(
    args, variants, control=second, published=published, claims=differences, notes=notes
  )


def parse_variants(text):
  """Returns the chosen variants, in the order of the table, then the baselines and other weightings."""
  known, chosen = (*TABLE_3, *BASELINES, *WEIGHTINGS), split_names(text)
  for name in chosen:
    if name not in known:
      raise unknown_name_error("config argument variants", name, known)
  return [name for name in known if name in chosen]


def method_variants(builder, name, second):
  """Returns the stages of every variant of a method."""
  return {
    "alone": builder.single_method(name),
    "stages": builder.sequential(name, second, stage="none"),
    "constant": builder.sequential(name, second, weighting="constant", tcp_temperature=1.0),
    "tcp": builder.sequential(name, second),
    "dla": builder.joint(name, second),
    **{variant: builder.sequential(name, second, **options) for variant, options in WEIGHTINGS.items()},
  }


def compared(chosen):
  """Returns the pairs of a method's variants that the study compares, the better one by the paper first."""
  steps = [name for name in TABLE_3 if name in chosen]
  pairs = [(better, worse) for worse, better in zip(steps, steps[1:], strict=False)]
  if "tcp" in chosen:
    others = [name for name in ("alone", "dla", *WEIGHTINGS) if name in chosen]
    pairs += [("tcp", other) for other in others]
  return pairs
