"""Evaluates a trained network on any data, and compares it with another.

  python -m smskd_jax.evaluate teachers/resnet56 --data=npz:cifar100.npz
  python -m smskd_jax.evaluate runs/quickstart --network=student --data=fashion_mnist_small --teacher=teachers/vgg8

PATH is the folder of an imported network, the workdir of a run, a stage of a store, a checkpoint of variables, or a
safetensors file of smskd_jax.export. One metric a line:

  accuracy, top5        share of the images whose class has the largest logit, one of the five largest
  nll                   mean of -log p(class), in nats
  ece, ace, brier       calibration: expected and adaptive calibration error, Brier score
  teacher_agreement     share of the images on which both networks predict the same class
  teacher_kl            mean of KL(teacher || network), in nats
  teacher_lost, _won    share of the images on which the teacher alone is right, the network alone
  teacher_iou           IoU of the sets of images on which either is right

Images are normalised as in the network's training, as far as PATH states it, else by the mean and deviation of the
data's training images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from smskd_jax import cli
from smskd_jax.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from smskd_jax.data.dataset import ChannelStats, Dataset, Split
  from smskd_jax.exchange.pretrained import LoadedNetwork

SPLITS = ("test", "train")
_FRACTIONS = ("accuracy", "agreement", "lost", "won")  # ends of names of metrics that are shown in per cent


class Evaluation(NamedTuple):
  """The metrics of a network, and what they are of."""

  network: str  # its architecture
  images: int
  normalization: "ChannelStats"  # that the network was fed by
  metrics: dict[str, float]  # by name; shares are in [0, 1]


def main(arguments: Sequence[str] | None = None) -> int:
  """Evaluates what the command line names; returns the exit status."""
  parser = cli.make_parser("evaluate", __doc__)
  parser.add_argument("path", type=Path, help="the trained network")
  parser.add_argument(
    "--data", required=True, help="a source, as data.source of a config: cifar100, npz:FILE"
  )
  parser.add_argument("--folder", default="", help="of the source's files, where it needs one")
  parser.add_argument("--split", default="test", help=f"one of {', '.join(SPLITS)}; default: test")
  parser.add_argument("--image_size", type=int, default=0, help="resize the images; default: as they are")
  parser.add_argument(
    "--network",
    help="of a run, a name of its config; of variables alone, their architecture: resnet20:width=0.5",
  )
  parser.add_argument("--mean", help="of the network's images, instead of what PATH states: 0.5,0.5,0.5")
  parser.add_argument("--std", help="likewise, the deviation")
  parser.add_argument("--teacher", type=Path, help="another trained network, to compare with")
  parser.add_argument("--teacher_network", help="as --network, of the teacher")
  parser.add_argument("--batch_size", type=int, default=512, help="of all devices; default: 512")
  parser.add_argument("--json", type=Path, help="a file for the same numbers")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  from smskd_jax.runtime import (
    compilation_cache,
    workdir,  # here and not above: --help need not wait for JAX
  )
  from smskd_jax.runtime.store import write_json

  if flags.json is not None:
    if flags.json.is_dir():
      raise UserError(f"--json: {flags.json} is a folder; name a file")
    workdir.check_writable("--json", flags.json.parent)
  compilation_cache.enable(None)
  options = vars(flags) | {"source": flags.data}
  for name in ("path", "data", "json"):
    del options[name]
  found = run(flags.path, options.pop("source"), **options)
  if flags.json is not None:
    about = {"path": str(flags.path), "data": flags.data, "split": flags.split}
    write_json(flags.json, about | found._asdict() | {"normalization": found.normalization._asdict()})
  return "\n".join(f"{name} {_metric_row(name, value)}" for name, value in found.metrics.items())


def run(
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
    path: the network, as `exchange.pretrained.read` takes it.
    source: of the data, as `data.source` of a config.
    folder: of the source's files, where it needs one.
    split: a name of SPLITS.
    image_size: height and width that the images are resized to; 0: as they are.
    network: as `exchange.pretrained.read` takes it.
    mean: of the network's images, numbers joined by commas; None: as its place states it, or the data's.
    std: likewise, the deviation.
    teacher: another network, to compare with; None: none.
    teacher_network: as `network`, of the teacher.
    batch_size: of the computation.

  Raises:
    UserError: there is no such network or data, or one is not for the other.
  """
  from smskd_jax.exchange import normalization, pretrained
  from smskd_jax.runtime import parallel
  from smskd_jax.training import evaluate

  if split not in SPLITS:
    raise UserError(f"--split: {split!r} is none of {', '.join(SPLITS)}")
  if batch_size < 1:
    raise UserError(f"--batch_size: {batch_size} is too small; it must be at least 1")
  stated = normalization.parse(mean, std)
  devices = parallel.select_devices([batch_size])  # before JAX is used
  found = pretrained.read("PATH", path, network)
  other = None if teacher is None else pretrained.read("--teacher", teacher, teacher_network)
  dataset = _load(source, folder, image_size)
  of_split = dataset.test if split == "test" else dataset.train
  if stated is not None:
    found = found._replace(normalization=normalization.of_channels(stated, dataset.image_shape[2]))
  others = {}
  if other is not None:
    others["teacher"] = _logits("--teacher", other, dataset, of_split, devices, batch_size)
  logits = _logits("PATH", found, dataset, of_split, devices, batch_size)
  metrics = evaluate.classification_metrics(logits, of_split.label, others)
  return Evaluation(
    found.architecture, len(of_split.label), found.normalization or dataset.channel_stats, metrics
  )


def _load(source: str, folder: str, image_size: int) -> "Dataset":
  """The data set; mistakes name the flags."""
  from smskd_jax import data

  try:
    return data.load(source, folder=folder, image_size=image_size)
  except UserError as error:
    message = str(error)
    for field, flag in (
      ("data.source", "--data"),
      ("data.folder", "--folder"),
      ("data.image_size", "--image_size"),
    ):
      message = message.replace(field, flag)
    raise UserError(message) from error


def _logits(
  field: str, found: "LoadedNetwork", dataset: "Dataset", split: "Split", devices: Any, batch_size: int
) -> "np.ndarray":
  """The logits [n, k] of a network on a split."""
  import functools

  from smskd_jax.data import augment
  from smskd_jax.models import renormalized
  from smskd_jax.runtime import parallel
  from smskd_jax.training import evaluate

  network = renormalized.make(_module(field, found, dataset), found.normalization, dataset.channel_stats)
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(evaluate.make_predict(network, normalize), devices)
  tree = parallel.replicate(found.variables, devices)

  def predict(rows: Any) -> Any:
    return parallel.unshard(compiled(tree, split.image[parallel.shard(rows, devices)]), devices)

  return evaluate.map_in_batches(predict, len(split.label), batch_size)


def _module(field: str, found: "LoadedNetwork", dataset: "Dataset") -> Any:
  """The network's module, for the data.

  Raises:
    UserError: it is for other images or classes.
  """
  from smskd_jax import models
  from smskd_jax.config import build
  from smskd_jax.exchange import variables
  from smskd_jax.models import introspection

  classes, channels = len(dataset.class_names), dataset.image_shape[2]
  if found.num_classes not in (None, classes):
    raise UserError(
      f"{field}: {found.architecture} has {found.num_classes} classes, but --data={dataset.name} has {classes}"
    )
  if found.channels not in (None, channels):
    raise UserError(
      f"{field}: {found.architecture} is for images of {found.channels} channels, "
      f"but --data={dataset.name} has {channels}"
    )
  try:
    network = models.factory(found.model)(num_classes=classes, **found.options)
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error
  build.check_network(field, network, found.model, dataset)
  try:
    variables.check_fits(field, found.variables, introspection.variable_shapes(network, dataset.image_shape))
  except UserError as error:
    height, width, _ = dataset.image_shape
    raise UserError(f"{error}; images are {height}x{width}, and --image_size resizes them") from error
  return network


def _metric_row(name: str, value: float) -> str:
  in_per_cent = name.startswith("top") or name.endswith(_FRACTIONS)
  return f"{100 * value:.2f} %" if in_per_cent else f"{value:.4f}"


if __name__ == "__main__":
  sys.exit(main())
