"""Schema of an experiment's config: default, description and allowed values of every field.

`config/builders.py` builds configs by these fields, `config/validate.py` checks their values, and `docs/config.md` is
generated from them.
"""

from typing import Any

from smskd_jax.config.fields import Field
from smskd_jax.data.dataset import MAX_IMAGE_SIZE
from smskd_jax.training import carry_over, reference

_MAX_SEED = 2**32 - 1  # the largest seed that keys of JAX and NumPy's RandomState both distinguish
_MAX_COUNT = 10**6  # larger counts would make arrays and programs that nobody needs

DATA = {
  "source": Field(
    "fashion_mnist_small",
    "Name of a source of `smskd_jax.data.SOURCES`, `npz:FILE`, `folder:DIR` or `tfds:NAME`.",
  ),
  "folder": Field("", "Folder of the source's files. Empty: the source's usual folder."),
  "validation": Field(
    0.0, "Fraction of the training images held out for validation, stratified by class.", at_least=0, below=1
  ),
  "split_seed": Field(
    0,
    "Seed of the validation split and of `max_images`. Runs of different `seed` share the split.",
    at_least=0,
    at_most=_MAX_SEED,
  ),
  "image_size": Field(
    0,
    "Side in pixels of the square that all images are resized to. 0: original size.",
    at_least=0,
    at_most=MAX_IMAGE_SIZE,
  ),
  "streamed": Field(
    False,
    "Read and crop the images of `folder:` and `tfds:` when a step needs them, instead of loading all "
    "into memory.",
  ),
  "min_crop_area": Field(
    0.08,
    "Smallest area of a random crop of a streamed training image, as a fraction of the image.",
    above=0,
    at_most=1,
  ),
  "center_crop_fraction": Field(
    0.875,
    "Side of the centre crop of a streamed test image, as a fraction of the image's shorter side (224 of "
    "256).",
    above=0,
    at_most=1,
  ),
  "unlabeled": Field("", "Source of further training images that stages use without labels. Empty: none."),
  "extra_tests": Field(
    (), "Further test sets: `cifar10.1`, a corruption as `gaussian_noise:3`, or `corruptions` for all."
  ),
}
EVALUATE = {
  "every_epochs": Field(1, "Epochs between two evaluations. The last epoch is always evaluated.", above=0),
  "batch_size": Field(500, "Images of an evaluation batch, over all devices.", above=0, at_most=_MAX_COUNT),
  "calibration_bins": Field(15, "Bins of the expected calibration error.", above=0, at_most=10**4),
  "num_forgetting_images": Field(
    1000, "Test images on which the losses of earlier stages are computed again. 0: none.", at_least=0
  ),
  "feature_images": Field(
    2000, "Test images whose features are stored and compared at the end of a stage. 0: none.", at_least=0
  ),
}
CHECKPOINT = {
  # 93 checkpoints in the 240 epochs of 781 steps of the usual CIFAR recipe.
  "every_steps": Field(
    2000,
    "Steps between two checkpoints. A killed process loses at most so many steps; SIGTERM and Ctrl-C lose "
    "none.",
    above=0,
  ),
  "max_to_keep": Field(2, "Checkpoints of a stage that are kept; older ones are removed.", above=0),
}
EXPERIMENT: dict[str, Any] = {
  "seed": Field(0, "Seed of initialization, batches, views and methods.", at_least=0, at_most=_MAX_SEED),
  "data": DATA,
  "networks": Field({}, "Networks by name: `network(...)`."),
  "stages": Field((), "Stages in order: `stage(...)`."),
  "evaluate": EVALUATE,
  "checkpoint": CHECKPOINT,
  "log_every_steps": Field(50, "Steps between two records of training metrics.", above=0),
  "num_workers": Field(
    0, "Processes that decode streamed images. 0: one thread for each core.", at_least=0, at_most=10**3
  ),
  "steps_per_call": Field(
    0, "Training steps per compiled call. 0: 1 on a CPU, 16 elsewhere.", at_least=0, at_most=10**4
  ),
  "probe_every_steps": Field(
    0,
    "Steps between two measurements of the gradients of task, methods and reference (norms and cosines), "
    "each at the cost of one to two steps. 0: none.",
    at_least=0,
  ),
}

REFERENCE = {
  "stage": Field(
    "none",
    "Stage whose final network is the reference: `previous`, the name of an earlier stage of the same "
    "network, or `none`.",
  ),
  "weight": Field(0.5, "lambda_r, the weight of the reference term.", at_least=0),
  "divergence": Field(
    "student_to_reference",
    "KL(student || reference), or `reference_to_student`: KL(reference || student).",
    choices=reference.DIVERGENCES,
  ),
  "temperature": Field(
    1.0, "Softmax temperature of both networks in the divergence. The paper leaves it open.", above=0
  ),
  "scale_by_temperature_squared": Field(False, "Multiply the divergence by the squared temperature."),
  "weighting": Field(
    "reference_tcp",
    "Weight of each example: a name of `reference.WEIGHTINGS`.",
    choices=tuple(reference.WEIGHTINGS),
  ),
  "tcp_temperature": Field(
    1.0, "Softmax temperature of the probabilities in the weights. The paper leaves it open.", above=0
  ),
  "normalize": Field(False, "Divide the weights by their mean over the batch."),
}
OPTIMIZER = {
  "name": Field(
    "sgd",
    "Name of `training/optimizer.py`'s `OPTIMIZERS`; further fields are the keyword arguments of its "
    "factory.",
  ),
  "learning_rate": Field(0.05, "Peak learning rate.", above=0),
  "base_batch_size": Field(
    0,
    "Batch size that the learning rate is given for: the rate is scaled in proportion to the images of an "
    "update. 0: no scaling.",
    at_least=0,
  ),
  "clip_norm": Field(
    0.0, "Largest norm of the gradient; larger gradients are scaled down. 0: no clipping.", at_least=0
  ),
  "accumulate_steps": Field(1, "Steps whose mean gradient gives one update.", above=0, at_most=_MAX_COUNT),
}
SCHEDULE = {
  "name": Field(
    "cosine",
    "Name of `training/schedule.py`'s `SCHEDULES`; further fields are the keyword arguments of its factory.",
  ),
  "start_epoch": Field(
    0, "Epochs of a shared schedule that earlier stages of the network have used.", at_least=0
  ),
  "total_epochs": Field(
    0, "Epochs of a schedule that several stages share. 0: the stage has its own schedule.", at_least=0
  ),
}
STAGE: dict[str, Any] = {
  "name": Field(
    "", "Name in reports and for other stages. Empty: the network and its methods, as `student_kd`."
  ),
  "network": Field("student", "Name of the network that is trained."),
  "init": Field(
    "previous",
    "Initial variables: `previous`, those of the network's previous stage or its `variables`; `scratch`, "
    "newly initialized.",
    choices=("previous", "scratch"),
  ),
  "carry_over": Field(
    "variables",
    "State taken from the network's previous stage: its `variables` alone; `optimizer`, also the "
    "optimizer's state; `all`, also the methods' variables and random streams, so that the stage "
    "continues the previous one. The paper leaves it open.",
    choices=carry_over.MODES,
  ),
  "teachers": Field((), "Names of networks that an earlier stage trains or that have `variables`."),
  "methods": Field((), "Distillation terms, trained jointly: `method(...)`."),
  "task_weight": Field(1.0, "lambda_c, the weight of the cross-entropy.", at_least=0),
  "label_smoothing": Field(
    0.0,
    "Probability that is spread evenly over all classes in the targets of the cross-entropy.",
    at_least=0,
    below=1,
  ),
  "reference": REFERENCE,
  "images": Field(
    "train",
    "Images that the stage trains on: `train`, or `unlabeled`, those of `data.unlabeled` alone.",
    choices=("train", "unlabeled"),
  ),
  "max_images": Field(
    0,
    "Size of a subset of the images, stratified by class and drawn by `data.split_seed`. 0: all.",
    at_least=0,
  ),
  "epochs": Field(1, "Epochs of the stage.", above=0, at_most=_MAX_COUNT),
  "alternate_epochs": Field(
    0,
    "Epochs after which the next method takes its turn. 0: all methods train together.",
    at_least=0,
    at_most=_MAX_COUNT,
  ),
  "batch_size": Field(64, "Images of a step, over all devices.", above=0, at_most=_MAX_COUNT),
  "unlabeled_batch_size": Field(
    0,
    "Images of `data.unlabeled` added to each batch, for the distillation terms alone.",
    at_least=0,
    at_most=_MAX_COUNT,
  ),
  "views": Field(
    ("crop_flip",),
    "Views of each image: names of `data/views.py`, joined by `+`. Every term is the mean over the views.",
  ),
  "augment": Field({}, "Options of the parts of the views, as `{'crop_flip': {'padding': 4}}`."),
  "mix": {"name": Field("none", "`mixup` or `cutmix`, with the options of its factory; `none`.")},
  "trainable": Field(
    "all",
    "Parameters that are trained: `all`, or `head`, the linear classifier alone, while batch norm keeps "
    "updating its statistics.",
    choices=("all", "head"),
  ),
  "teacher_statistics": Field(
    "running",
    "Batch norm of the teachers: `running` statistics, or those of each `batch` as in training.",
    choices=("running", "batch"),
  ),
  "teacher_cache": Field(
    "off",
    "Compute the teachers' outputs once for each view that the stage samples, and store them in this type.",
    choices=("off", "float32", "float16"),
  ),
  "keep_checkpoint": Field(
    "last",
    "Network that the stage ends with: of the `last` step, or of the epoch that is best by `validation` "
    "accuracy.",
    choices=("last", "validation"),
  ),
  "ema_decay": Field(
    0.0,
    "Decay per step of an exponential moving average of the network's variables, which is then evaluated "
    "and stored. 0: none.",
    at_least=0,
    below=1,
  ),
  "optimizer": OPTIMIZER,
  "schedule": SCHEDULE,
}

NETWORK: dict[str, Any] = {
  "model": Field(
    "",
    "Name of `smskd_jax.models.MODELS`, or `custom:package.module:Class`; further fields are the keyword "
    "arguments of its factory.",
  ),
  "num_classes": Field(0, "Number of classes. 0: that of the data.", at_least=0),
  "variables": Field(
    "",
    "Folder of an imported network, a run or a checkpoint with initial variables. Empty: newly initialized.",
  ),
}

METHOD: dict[str, Any] = {
  "name": Field(
    "",
    "Name of `smskd_jax.losses.METHODS`, or `custom:package.module:name`; further fields are the keyword "
    "arguments of its factory.",
  ),
  "weight": Field(1.0, "Weight of the term in the objective.", at_least=0),
  "warmup_epochs": Field(
    0.0, "Epochs over which the weight grows linearly to its value, epoch by epoch. 0: none.", at_least=0
  ),
  "plugins": Field(
    (), "Plug-ins that transform the inputs of the method: `plugin(...)`; the first is the outermost."
  ),
}

PLUGIN: dict[str, Any] = {
  "name": Field(
    "", "Name of `smskd_jax.losses.PLUGINS`; further fields are the keyword arguments of its factory."
  ),
}
