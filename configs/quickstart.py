"""A teacher, a student in three SMSKD stages, and the same student alone, on 6,000 small real images.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

vgg8 of a quarter of its width teaches resnet8 of half its width on `fashion_mnist_small`: attention maps (at), logits
(kd), then decoupled logits (dkd), for two epochs each on one learning-rate schedule, the last two anchored by the stage
before as published (https://arxiv.org/abs/2601.15657). `alone` is the same network with labels only, for the same six
epochs. The weight of at and the schedule are set for so short a run, not by the papers. The README has the numbers of
one run.
"""

from smskd_jax.config import experiment, method, network, stage


def get_config():
  """The quickstart's config."""

  def train(learner, *, epochs, learning_rate=0.1, **fields):
    return stage(
      learner,
      epochs=epochs,
      batch_size=64,
      augment={"crop_flip": {"padding": 2, "flip": True}},
      optimizer={"name": "sgd", "learning_rate": learning_rate},
      **fields,
    )

  def distill(term, start_epoch, **fields):
    return train(
      "student",
      name=term["name"],
      teachers=("teacher",),
      methods=(term,),
      epochs=2,
      schedule={"name": "cosine", "start_epoch": start_epoch, "total_epochs": 6},
      reference={"stage": "previous" if start_epoch else "none"},
      **fields,
    )

  return experiment(
    data={"source": "fashion_mnist_small"},
    networks={
      "teacher": network("vgg8", width=0.25),
      "student": network("resnet8", width=0.5),
      "alone": network("resnet8", width=0.5),
    },
    stages=(
      train("teacher", epochs=8, learning_rate=0.05),
      distill(method("at", weight=100.0), 0),
      distill(method("kd", weight=0.9, temperature=4.0), 2, task_weight=0.1),
      distill(method("dkd", beta=2.0, temperature=4.0), 4),
      train("alone", epochs=6),
    ),
  )
