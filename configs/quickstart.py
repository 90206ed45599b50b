"""Quickstart: a teacher, a student in three SMSKD stages, and the student alone, on 6,000 small images.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

vgg8 at a quarter of its width teaches resnet8 at half of its width on `fashion_mnist_small`: attention maps (at),
logits (kd), then decoupled logits (dkd), for two epochs each on one learning-rate schedule. The second and third stage
have the SMSKD reference term (https://arxiv.org/abs/2601.15657). `alone` is the same network trained with labels only
for the same six epochs. The weight of `at` and the schedule are chosen for this short run, not taken from the papers.

Test accuracy of seed 0 in percent: teacher 87.00, at 68.70, kd 79.10, dkd 80.80, alone 80.65; docs/results.md has three
seeds. Cost: one to three minutes on two CPU cores.
"""

from smskd_jax.config import experiment, method, network, stage


def get_config():
  """Returns the experiment."""

  def train(network_name, *, epochs, learning_rate=0.1, **fields):
    return stage(
      network_name,
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
