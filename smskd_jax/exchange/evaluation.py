"""Evaluates a trained network on a data set, and compares it with another network."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
import numpy as np

from smskd_jax import data, models
from smskd_jax.config import build
from smskd_jax.data import augment
from smskd_jax.data.dataset import ChannelStats, Dataset, Split
from smskd_jax.errors import UserError
from smskd_jax.exchange import normalization, pretrained, variables
from smskd_jax.exchange.pretrained import LoadedNetwork
from smskd_jax.models import introspection, renormalized
from smskd_jax.runtime import parallel
from smskd_jax.training import evaluate

SPLITS = ("test", "train")
_PERCENT_SUFFIXES = ("accuracy", "agreement", "regressions", "improvements")  # of metrics shown in per cent
_FLAGS = {"data.source": "--data", "data.folder": "--folder", "data.image_size": "--image_size"}


class Evaluation(NamedTuple):
  """Metrics of a network on a split."""

  network: str  # its architecture
  images: int
  normalization: ChannelStats  # of the network's inputs
  metrics: dict[str, float]  # by name; fractions are in [0, 1]

  def __str__(self) -> str:
    """One metric a line; fractions in per cent."""
    return "\n".join(f"{name} {_format_metric(name, value)}" for name, value in self.metrics.items())


def evaluate_network(
  path: Path,
  source: str,
  *,
  folder: str = "",
  split: str = "test",
  image_size: int = 0,
  network: str | None = None,
  mean: str | None = None,
  std: str | None = None,
  teacher: Path | None = None,
  teacher_network: str | None = None,
  batch_size: int = 512,
) -> Evaluation:
  """Evaluates a trained network.

  Args:
    path: the network, as `pretrained.load` takes it.
    source: of the data, as `data.source` of a config.
    folder: of the source's files, where the source needs one.
    split: a name of SPLITS.
    image_size: height and width in pixels that images are resized to; 0: no resizing.
    network: as `pretrained.load` takes it.
    mean: of the network's images, numbers joined by commas; None: as stored with the network, else the data's.
    std: standard deviation, as `mean`.
    teacher: another network to compare with; None: none.
    teacher_network: as `network`, of the teacher.
    batch_size: images per compiled call, over all devices.

  Raises:
    UserError: the network or the data does not exist, or they do not fit.
  """
  if split not in SPLITS:
    raise UserError(f"--split: {split!r} is none of {', '.join(SPLITS)}")
  if batch_size < 1:
    raise UserError(f"--batch_size: {batch_size} is too small; it must be at least 1")
  stats = normalization.parse(mean, std)
  devices = parallel.select_devices([batch_size])  # before JAX is used
  loaded = pretrained.load("PATH", path, network)
  other = None if teacher is None else pretrained.load("--teacher", teacher, teacher_network)
  dataset = _load_data(source, folder, image_size)
  images = dataset.test if split == "test" else dataset.train
  if stats is not None:
    loaded = loaded._replace(normalization=normalization.per_channel(stats, dataset.image_shape[2]))
  compute = functools.partial(
    _compute_logits, dataset=dataset, split=images, devices=devices, batch_size=batch_size
  )
  others = {} if other is None else {"teacher": compute("--teacher", other)}
  metrics = evaluate.classification_metrics(compute("PATH", loaded), images.label, others)
  return Evaluation(
    loaded.architecture, len(images.label), loaded.normalization or dataset.channel_stats, metrics
  )


def _load_data(source: str, folder: str, image_size: int) -> Dataset:
  """Loads the data set; errors name the flags instead of the config's fields."""
  try:
    return data.load(source, folder=folder, image_size=image_size)
  except UserError as error:
    message = str(error)
    for field, flag in _FLAGS.items():
      message = message.replace(field, flag)
    raise UserError(message) from error


def _compute_logits(
  field: str, loaded: LoadedNetwork, *, dataset: Dataset, split: Split, devices: Any, batch_size: int
) -> np.ndarray:
  """Logits [n, k] of a network on a split."""
  network = renormalized.make(_build(field, loaded, dataset), loaded.normalization, dataset.channel_stats)
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(evaluate.make_predict(network, normalize), devices)
  tree = parallel.replicate(loaded.variables, devices)

  def predict(rows: Any) -> Any:
    return parallel.unshard(compiled(tree, split.image[parallel.shard(rows, devices)]), devices)

  return evaluate.map_in_batches(predict, len(split.label), batch_size)


def _build(field: str, loaded: LoadedNetwork, dataset: Dataset) -> nn.Module:
  """The network's module for a data set.

  Raises:
    UserError: the network is for other images or classes.
  """
  classes, channels = len(dataset.class_names), dataset.image_shape[2]
  if loaded.num_classes not in (None, classes):
    raise UserError(
      f"{field}: {loaded.architecture} has {loaded.num_classes} classes, but --data={dataset.name} has {classes}"
    )
  if loaded.channels not in (None, channels):
    raise UserError(
      f"{field}: {loaded.architecture} is for images of {loaded.channels} channels, "
      f"but --data={dataset.name} has {channels}"
    )
  try:
    network = models.factory(loaded.model)(num_classes=classes, **loaded.options)
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error
  build.check_network(field, network, loaded.model, dataset)
  try:
    variables.check_fits(field, loaded.variables, introspection.variable_shapes(network, dataset.image_shape))
  except UserError as error:
    height, width, _ = dataset.image_shape
    raise UserError(f"{error}; images are {height}x{width}, and --image_size resizes them") from error
  return network


def _format_metric(name: str, value: float) -> str:
  percent = name.startswith("top") or name.endswith(_PERCENT_SUFFIXES)
  return f"{100 * value:.2f} %" if percent else f"{value:.4f}"
