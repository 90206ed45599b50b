"""A teacher, a student in three SMSKD stages, and the same student alone, on 6,000 small real images.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

resnet14 teaches resnet8 of half its width on `fashion_mnist_small`: hints (fitnet), relations (rkd), then logits (kd),
three epochs each, the last two anchored by the stage before. `alone` is the same network with labels only, for the
same nine epochs. The README has the numbers of one run.
"""

from smskd_jax.config import experiment, method, network, stage

COMMON = {
  "batch_size": 64,
  "augment": {"padding": 2, "flip": True},
  "optimizer": {"name": "sgd", "learning_rate": 0.05},
  "schedule": {"name": "cosine"},
}


def get_config():
  """The quickstart's config."""

  def student(name, term, task_weight, **fields):
    return stage(
      "student",
      name=name,
      teachers=("teacher",),
      methods=(term,),
      task_weight=task_weight,
      epochs=3,
      **COMMON,
      **fields,
    )

  return experiment(
    data={"source": "fashion_mnist_small"},
    networks={
      "teacher": network("resnet14"),
      "student": network("resnet8", width=0.5),
      "alone": network("resnet8", width=0.5),
    },
    stages=(
      stage("teacher", epochs=12, **COMMON),
      student("fitnet", method("fitnet", weight=100.0), 1.0),
      student("rkd", method("rkd", weight=1.0), 1.0, reference={"stage": "previous"}),
      student("kd", method("kd", weight=0.9), 0.1, reference={"stage": "previous"}),
      stage("alone", epochs=9, **COMMON),
    ),
  )
