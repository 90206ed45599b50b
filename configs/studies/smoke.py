"""The smallest study: does it run at all? Numbers mean nothing.

python -m smskd_jax.study --config=configs/studies/smoke.py --workdir=runs/study_smoke
"""

from smskd_jax.config import experiment, method, network, stage
from smskd_jax.config.study_schema import study, with_changes


def get_config():
  """The config."""
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  taught = {"teachers": ("teacher",), **common}
  networks = {"teacher": network("resnet8", width=0.25), "student": network("resnet8", width=0.125)}
  base = experiment(
    data={"source": "digits"},
    networks=networks,
    stages=(
      stage("student", name="fitnet", methods=(method("fitnet"),), **taught),
      stage("student", name="kd", methods=(method("kd"),), reference={"stage": "previous"}, **taught),
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
