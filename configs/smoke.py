"""Three tiny stages on scikit-learn's digits, in seconds: to see that an installation works.

python -m smskd_jax.main --config=configs/smoke.py --workdir=runs/smoke
"""

from smskd_jax.config import experiment, method, network, stage


def get_config():
  """The smallest SMSKD experiment: a thin teacher, and a thinner student in three stages."""
  common = {"batch_size": 64, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  student = {"network": "student", "teachers": ("teacher",), **common}
  anchored = {"reference": {"stage": "previous"}}
  return experiment(
    data={"source": "digits", "validation": 0.1},
    networks={"teacher": network("resnet8", width=0.5), "student": network("resnet8", width=0.25)},
    stages=(
      stage("teacher", epochs=3, **common),
      stage(name="fitnet", methods=(method("fitnet"),), **student),
      stage(name="rkd", methods=(method("rkd", weight=0.1),), **student, **anchored),
      stage(name="kd", methods=(method("kd", weight=0.9),), task_weight=0.1, **student, **anchored),
    ),
    checkpoint={"every_steps": 10},
    log_every_steps=5,
  )
