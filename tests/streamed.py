"""Config of a teacher and two student stages of tiny networks on streamed images; the argument is their folder."""

from smskd_jax.config import experiment, method, network, stage
from tiny import SMALL

# Images per class: an epoch has five steps of 32 and drops ten images.
COUNT = 85


def get_config(folder, **data_fields):
  """Returns the config; its stages have enough steps to be stopped within an epoch."""
  common = {"batch_size": 32, "epochs": 2, "augment": {"crop_flip": {"padding": 0}}}
  student = {"network": "student", "teachers": ("teacher",), **common}
  return experiment(
    data={"source": f"folder:{folder}", "unlabeled": f"folder:{folder}", "streamed": True, "image_size": 16}
    | data_fields,
    networks={"teacher": network(SMALL, width=0.25), "student": network(SMALL, width=0.125)},
    stages=(
      stage("teacher", **common),
      stage(name="fitnet", methods=(method("fitnet"),), unlabeled_batch_size=16, **student),
      stage(name="kd", methods=(method("kd"),), reference={"stage": "previous"}, **student),
    ),
    checkpoint={"every_steps": 4},
    log_every_steps=1,
  )
