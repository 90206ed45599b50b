"""Smoke test of studies: two variants, with and without a reference, two seeds, on scikit-learn's digits.

  python -m smskd_jax.study --config=configs/studies/smoke.py --workdir=runs/study_smoke

Accuracies mean nothing. Cost: a minute on a CPU.
"""

from smskd_jax.config import experiment, method, network, stage
from smskd_jax.config.study_schema import study, with_changes


def get_config():
  """Returns the study."""
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  student = {"teachers": ("teacher",), **common}
  networks = {"teacher": network("resnet8", width=0.25), "student": network("resnet8", width=0.125)}
  base = experiment(
    data={"source": "digits"},
    networks=networks,
    stages=(
      stage("student", name="fitnet", methods=(method("fitnet"),), **student),
      stage("student", name="kd", methods=(method("kd"),), reference={"stage": "previous"}, **student),
    ),
  )
  teachers = experiment(
    data={"source": "digits"}, networks={"teacher": networks["teacher"]}, stages=(stage("teacher", **common),)
  )
  return study(
    seeds=(0, 1),
    teachers=teachers,
    variants={"anchored": base, "free": with_changes(base, {"stages[1].reference.stage": "none"})},
  )
