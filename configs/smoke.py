"""Smoke test of an installation: a teacher and three tiny SMSKD stages on scikit-learn's digits.

  python -m smskd_jax.main --config=configs/smoke.py --workdir=runs/smoke

Accuracies mean nothing. Cost: seconds on a CPU.
"""

from smskd_jax.config import experiment, method, network, stage


def get_config():
  """Returns the experiment."""
  common = {"batch_size": 64, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  student = {"network": "student", "teachers": ("teacher",), **common}
  later = {"reference": {"stage": "previous"}}
  return experiment(
    data={"source": "digits", "validation": 0.1},
    networks={"teacher": network("resnet8", width=0.5), "student": network("resnet8", width=0.25)},
    stages=(
      stage("teacher", epochs=3, **common),
      stage(name="fitnet", methods=(method("fitnet"),), **student),
      stage(name="rkd", methods=(method("rkd", weight=0.1),), **student, **later),
      stage(name="kd", methods=(method("kd", weight=0.9),), task_weight=0.1, **student, **later),
    ),
    checkpoint={"every_steps": 10},
    log_every_steps=5,
  )
