"""A teacher, a student in three SMSKD stages, and the same student alone, on 6,000 small real images.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

resnet14 teaches resnet8 of half its width on `fashion_mnist_small`: hints (fitnet), relations (rkd), then logits (kd),
three epochs each, the last two anchored by the stage before; `alone` is the same network with labels only for the same nine epochs.
"""

from smskd_jax.config import experiment, method, network, stage

# Batch 64, pad 2: the images are 28x28.
COMMON = {
  "batch_size": 64,
  "augment": {"padding": 1, "flip": True},
  "optimizer": {"name": "sgd", "learning_rate": 0.1, "nesterov": True},
  "schedule": {"name": "cosine"},
}


def get_config():
  """The quickstart's config."""

  def student(name, term, epochs, task_weight, **fields):
    return stage(
      "student",
      name=name,
      teachers=("teacher",),
      methods=(term,),
      task_weight=task_weight,
      epochs=epochs,
      **COMMON,
      **fields,
    )

  return experiment(
    data={"source": "fashion_mnist_small"},
    networks={
      "teacher": network("resnet14", width=0.5),
      "student": network("resnet8", width=0.5),
      "alone": network("resnet8", width=0.5),
    },
    stages=(
      stage("teacher", epochs=6, **COMMON),
      student("fitnet", method("fitnet", weight=10.0), 1, 1.0),
      student("rkd", method("rkd", weight=1.0), 1, 1.0, reference={"stage": "previous"}),
      student("kd", method("kd", weight=0.9), 4, 0.1, reference={"stage": "previous"}),
      stage("alone", epochs=6, **COMMON),
    ),
  )
