"""SMSKD on ImageNet by the common recipe of the literature, with streamed images.

  python -m smskd_jax.main --workdir=runs/imagenet \\
    --config=configs/imagenet.py:dataset=folder:/data/imagenet,stages=dkd+kd,teacher_variables=resnet34

The recipe is that of "Decoupled Knowledge Distillation" and its public code (Zhao et al., CVPR 2022,
https://arxiv.org/abs/2203.08679): SGD with momentum 0.9 and weight decay 1e-4, learning rate 0.1 per 256 images,
reduced by 0.1 after 30, 60 and 90 of 100 epochs; random crops of at least 8 % of the image, resized to 224x224, and
flips; the central 224 of 256 pixels for testing. Published top-1 accuracy on the validation set in percent, the
authors' numbers:

                                              teacher  student     KD    CRD  ReviewKD    DKD   DIST    NKD
  imagenet_resnet34 -> imagenet_resnet18        73.31    69.76  71.03  71.17     71.61  71.70  72.07  71.96
  imagenet_resnet50 -> imagenet_mobilenet_v1    76.16    68.87  70.50  71.37     72.56  72.05  73.24  72.58

No full run has been made with this config, only tests on a few hundred photographs. Cost: see --dry_run.

Data: dataset=folder:DIR with DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG, or tfds:imagenet2012, prepared as
array_record in the data_dir `folder`. Images are decoded by one thread per core, or by num_workers=N processes.

`stages`, `protocol` and `mode` are as in configs/smskd.py: with protocol=paper the second of two stages begins at the
first drop of the rate. smskd_jax/recipes/literature.csv has published weights of kd, dkd, dist, nkd and reviewkd for
these pairs; other methods have their weights for CIFAR-100.

teacher_variables=FOLDER reads the teacher from a folder: `python -m smskd_jax.import_torch` converts torchvision's
checkpoints, the teachers of the literature. Without the argument the teacher is trained first, by the same recipe.

Arguments: dataset, folder, image_size, teacher, teacher_variables, student, stages (joined by +), epochs,
teacher_epochs (0: as epochs), mode, batch_size, learning_rate (per 256 images), dtype (bfloat16 on TPUs and recent
GPUs), num_workers, seed, and `STAGE_ARGUMENTS` of smskd_jax/recipes/smskd.py.
"""

from smskd_jax.config import experiment, network, parse_arg
from smskd_jax.recipes import smskd


def get_config(arg=None):
  """Returns the experiment for a string of arguments."""
  args = parse_arg(
    arg,
    dataset="tfds:imagenet2012",
    folder="",
    image_size=224,
    teacher="imagenet_resnet34",
    teacher_variables="",
    student="imagenet_resnet18",
    epochs=100,
    teacher_epochs=0,
    batch_size=256,
    learning_rate=0.1,
    dtype="float32",
    num_workers=0,
    seed=0,
    stages="kd",
    mode="stages",
    **smskd.STAGE_ARGUMENTS,
  )
  with args.unlocked():
    args.nominal_epochs = 100
  methods = smskd.parse_methods("stages", args.stages)
  recipe = {
    "batch_size": args.batch_size,
    "optimizer": {
      "name": "sgd",
      "learning_rate": args.learning_rate,
      "base_batch_size": 256,
      "weight_decay": 1e-4,
    },
    "schedule": {"name": "multistep", "milestones": (0.3, 0.6, 0.9)},
    "augment": {"crop_flip": {"padding": 0}},  # only flips: images are cropped when they are decoded
  }
  return experiment(
    seed=args.seed,
    data={
      "source": args.dataset,
      "folder": args.folder,
      "image_size": args.image_size,
      "streamed": True,
    },
    networks={
      "teacher": network(args.teacher, variables=args.teacher_variables, dtype=args.dtype),
      "student": network(args.student, dtype=args.dtype),
    },
    stages=(
      *smskd.teacher_stages(args, recipe),
      *smskd.student_stages(args, methods, recipe, args.mode),
    ),
    num_workers=args.num_workers,
    steps_per_call=1,  # a call of several steps would hold all their images
    log_every_steps=100,
    checkpoint={"every_steps": 1000},
  )
