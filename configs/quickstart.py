"""A teacher, a student in three SMSKD stages, and the same student alone, on 6,000 small real images.

  python -m smskd_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

vgg8 of a quarter of its width teaches resnet8 of half its width on `fashion_mnist_small`: hints (fitnet), relations
(rkd), then logits (kd), for one, one and four epochs, the last two anchored by the stage before. `alone` is the same
network with labels only, for the same six epochs. Weights, temperature and schedules are set for so short a run, not
by the papers: a stage of one epoch learns more at a constant rate. The README has the numbers of one run.
"""

from smskd_jax.config import experiment, method, network, stage


def get_config():
  """The quickstart's config."""

  def train(learner, *, epochs, learning_rate, schedule="cosine", **fields):
    return stage(
      learner,
      epochs=epochs,
      batch_size=64,
      augment={"crop_flip": {"padding": 2, "flip": True}},
      optimizer={"name": "sgd", "learning_rate": learning_rate},
      schedule={"name": schedule},
      **fields,
    )

  def distill(term, epochs, **fields):
    return train(
      "student",
      name=term["name"],
      teachers=("teacher",),
      methods=(term,),
      epochs=epochs,
      learning_rate=0.1,
      **fields,
    )

  anchored = {"stage": "previous", "weight": 0.1}
  return experiment(
    data={"source": "fashion_mnist_small"},
    networks={
      "teacher": network("vgg8", width=0.25),
      "student": network("resnet8", width=0.5),
      "alone": network("resnet8", width=0.5),
    },
    stages=(
      train("teacher", epochs=8, learning_rate=0.05),
      distill(method("fitnet", weight=0.1), epochs=1, schedule="constant"),
      distill(method("rkd", weight=0.1), epochs=1, schedule="constant", reference=anchored),
      distill(method("kd", weight=0.9, temperature=2.0), epochs=4, task_weight=0.1, reference=anchored),
      train("alone", epochs=6, learning_rate=0.1),
    ),
  )
