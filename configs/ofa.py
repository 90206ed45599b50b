"""One-for-all distillation (OFA) from a convolutional teacher to a vision transformer on CIFAR-100.

  python -m smskd_jax.main --workdir=runs/ofa --config=configs/ofa.py
  python -m smskd_jax.main --workdir=runs/none --config=configs/ofa.py:stages=none
  python -m smskd_jax.main --workdir=runs/ofa_kd --config=configs/ofa.py:stages=ofa+kd

Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", NeurIPS 2023, https://arxiv.org/abs/2310.19444, and its public code, OFAKD f7bb896. resnet56 is trained
by CRD's recipe (240 epochs, batch 64), then vit_tiny by that code's recipe for transformers and MLPs on CIFAR-100: 300
epochs, AdamW with rate 5e-4 for 1024 images (128 on each of 8 GPUs), decay 0.05, gradients clipped at norm 5, 20 epochs
of warm-up, cosine, label smoothing 0.1, RandAugment, mixup, random erasing of a quarter of the images; cross-entropy +
OFA of the logits + OFA of each of the four quarters of the blocks.

The paper has other networks, of images resized to 224x224, with pretrained teachers, so that none of its numbers is
reproduced here. Its CIFAR-100 accuracies in percent, of three of its pairs:

                              student     KD    OFA
  ConvNeXt-T -> DeiT-T          68.00  72.99  75.76
  Swin-T -> ResNet18            74.01  78.74  80.54
  ConvNeXt-T -> ResMLP-S12      66.56  72.25  81.22

No full run has been made with this config, only tests of a few steps. Cost: see --dry_run.

Differences from that code's recipe: images keep their 32x32 pixels and are cropped after padding by 4, with patches of
4x4 pixels, so that there are 64 tokens; the rate falls to 0, not to 1e-5; weight decay is on all parameters, where that
code leaves out biases and norms; batches are mixed by mixup (alpha 0.8) alone, where that code takes CutMix for half of
them; each image has one operation of RandAugment, of magnitude 27 of 30, where that code applies each of two of 9 of 10
with probability 1/2.

`stages`, `protocol` and `mode` are as in configs/smskd.py, and every method of smskd_jax/recipes/literature.csv works
for this pair, with the published weights of other pairs; stages=none is the student trained with labels alone.

Arguments: dataset, folder, teacher, teacher_variables (folder of a trained teacher, which is then not trained),
teacher_epochs, student, patch_size (of a transformer or mixer), stages (joined by +, or none), mode, epochs,
warmup_epochs, batch_size, learning_rate (per 1024 images), mix (mixup, cutmix or none), padding, validation, seed, and
`STAGE_ARGUMENTS` of smskd_jax/recipes/smskd.py.
"""

from smskd_jax.config import experiment, network, parse_arg
from smskd_jax.errors import unknown_name_error
from smskd_jax.recipes import literature, smskd

MIXES = {"mixup": {"name": "mixup", "alpha": 0.8}, "cutmix": {"name": "cutmix"}, "none": {"name": "none"}}


def get_config(arg=None):
  """Returns the experiment for a string of arguments."""
  args = parse_arg(
    arg,
    dataset="cifar100",
    folder="",
    teacher="resnet56",
    teacher_variables="",
    teacher_epochs=240,
    student="vit_tiny",
    patch_size=4,
    stages="ofa",
    mode="stages",
    epochs=300,
    warmup_epochs=20.0,
    batch_size=1024,
    learning_rate=5e-4,
    mix="mixup",
    padding=4,
    validation=0.0,
    seed=0,
    **smskd.STAGE_ARGUMENTS,
  )
  if args.mix not in MIXES:
    raise unknown_name_error("config argument mix", args.mix, MIXES)
  return experiment(
    seed=args.seed,
    data={"source": args.dataset, "folder": args.folder, "validation": args.validation},
    networks={
      "teacher": network(args.teacher, variables=args.teacher_variables),
      "student": network(args.student, patch_size=args.patch_size),
    },
    stages=(*smskd.teacher_stages(args, teacher_recipe(args)), *student_stages(args)),
  )


def teacher_recipe(args):
  """Returns the fields of the teacher's stage: CRD's recipe."""
  return {
    "batch_size": 64,
    "augment": {"crop_flip": {"padding": args.padding}},
    "optimizer": {"name": "sgd", "learning_rate": literature.learning_rate(args.teacher)},
    "schedule": {"name": "multistep", "milestones": smskd.MILESTONES},
  }


def student_stages(args):
  """Returns the student's stages by the recipe for transformers."""
  recipe = {
    "batch_size": args.batch_size,
    "label_smoothing": 0.1,
    "views": ("crop_flip+randaugment+random_erasing",),
    "augment": {
      "crop_flip": {"padding": args.padding},
      "randaugment": {"num_ops": 1, "magnitude": 27},
      "random_erasing": {"probability": 0.25, "max_area": 1 / 3},
    },
    "mix": MIXES[args.mix],
    "optimizer": {
      "name": "adamw",
      "learning_rate": args.learning_rate,
      "base_batch_size": 1024,
      "weight_decay": 0.05,
      "clip_norm": 5.0,
    },
    "schedule": {"name": "cosine", "warmup_epochs": args.warmup_epochs},
  }
  if args.stages == "none":
    return [smskd.student_stage(args, (), smskd.Span(args.epochs), recipe, name="student")]
  return smskd.student_stages(args, smskd.parse_methods("stages", args.stages), recipe, args.mode)
