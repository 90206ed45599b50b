"""Imports PyTorch checkpoints as networks of the zoo; names the networks that would fit."""

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from smskd_jax.config import merge
from smskd_jax.data.dataset import MAX_IMAGE_SIZE
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.exchange import exported_network, normalization, torch_reader, variables
from smskd_jax.models import NETWORKS, torch_weights
from smskd_jax.models.introspection import ImageShape
from smskd_jax.runtime import workdir


class ImportedNetwork(NamedTuple):
  """A network of a checkpoint."""

  network: str  # a name of NETWORKS
  options: dict[str, Any]
  num_classes: int
  image_shape: ImageShape  # [h, w, c]
  variables: Any  # host arrays of the checkpoint's types


def import_file(
  file: Path,
  network: str,
  out: Path,
  *,
  image_size: int | None = None,
  mean: str | None = None,
  std: str | None = None,
) -> str:
  """Writes the network of a checkpoint to a folder.

  Returns a line of its size and fingerprint.

  Args:
    file: the checkpoint.
    network: its architecture, NAME or NAME:option=value,...
    out: the folder.
    image_size: height and width of its images in pixels; None: as `load_network`.
    mean: of its images in training, numbers joined by commas; None: unknown.
    std: standard deviation of its images in training, as `mean`.

  Raises:
    UserError: the file is broken, holds more than data, or is of another network; the normalisation is invalid; or the
      folder is not empty.
  """
  name, options = parse_network(network)
  stats = normalization.parse(mean, std)
  if image_size is not None and not 8 <= image_size <= MAX_IMAGE_SIZE:
    raise UserError(f"--image_size: {image_size} is not in 8 to {MAX_IMAGE_SIZE}, pixels of height and width")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out: {out} exists and is not an empty folder; choose another")
  workdir.check_writable("--out", out)
  imported = load_network(file, name, options, image_size)
  if stats is not None:
    stats = normalization.per_channel(stats, imported.image_shape[2])
  tree = variables.to_numpy(imported.variables)
  variables.check_finite(str(file), tree)
  description = imported._asdict() | {"normalization": stats and stats._asdict(), "source": file.name}
  del description["variables"]
  fingerprint = variables.save(out, tree, description)
  count = sum(x.size for x in jax.tree.leaves(tree["params"]))
  return f"{network}: {count:,} parameters, {imported.num_classes} classes, fingerprint {fingerprint[:16]}, in {out}"


def read_tensors(file: Path) -> dict[str, np.ndarray]:
  """The tensors of a file of `torch.save` or of safetensors, by name.

  Raises:
    UserError: the file is broken, or holds more than data.
  """
  if file.suffix == ".safetensors":
    return exported_network.read_tensors(file)
  return torch_reader.find_state_dict(torch_reader.read(file), file)


def parse_network(text: str) -> tuple[str, dict[str, Any]]:
  """Name and options of a network, from 'NAME' or 'NAME:option=value,...'.

  Raises:
    UserError: an unknown name or option, or a value that the network refuses.
  """
  name, _, items = text.partition(":")
  if name not in NETWORKS:
    raise unknown_name_error("--network", name, NETWORKS)
  options = merge.parse_items("--network: option", items, merge.default_kwargs(NETWORKS[name]))
  try:
    NETWORKS[name](num_classes=2, **options)
  except ValueError as error:
    raise UserError(f"--network: {error}") from error
  return name, options


def load_network(
  file: Path, name: str, options: Mapping[str, Any], image_size: int | None
) -> ImportedNetwork:
  """Loads the network of a checkpoint.

  Args:
    file: the checkpoint.
    name: of NETWORKS.
    options: of the network.
    image_size: height and width of its images in pixels; None: 32, or 224 for networks of ImageNet.

  Raises:
    UserError: the file is broken, holds more than data, or is of another network: names those that would fit.
  """
  tensors = read_tensors(file)
  in_channels = {x.shape[1] for x in tensors.values() if x.ndim == 4}
  if not in_channels:
    raise UserError(f"{file}: it has no convolution")
  size = image_size or (224 if name.startswith("imagenet_") else 32)
  shape = (size, size, 3 if 3 in in_channels else 1)  # images are RGB or grey
  num_classes = _num_classes(name, options, tensors, shape) or 1
  network = NETWORKS[name](num_classes=num_classes, **options)
  try:
    loaded = torch_weights.from_torch(network, tensors, image_shape=shape)
  except ValueError as error:
    others = list(_matching_networks(tensors, options, shape))
    if others:
      raise UserError(
        f"{file}: these are the weights of {' or of '.join(others)}, not of {merge.format_options(name, options)}; "
        f"give --network={others[0]}"
      ) from error
    raise UserError(f"{file}: {error}") from error
  return ImportedNetwork(name, dict(options), num_classes, shape, loaded)


def _num_classes(
  name: str, options: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shape: ImageShape
) -> int:
  """Rows of the classifier, the only matrix whose shape depends on the classes.

  0 where there is none.
  """
  shapes = torch_weights.torch_shapes(NETWORKS[name](num_classes=1, **options), shape)
  head = torch_weights.match_names(shapes, tensors).get(_classifier_key(shapes))
  return 0 if head is None or head.ndim != 2 else head.shape[0]


def _classifier_key(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """Key of the classifier's weights, from the shapes of a network with one class."""
  (key,) = (
    key for key, shape in shapes.items() if len(shape) == 2 and shape[0] == 1 and key.endswith("weight")
  )
  return key


def _matching_networks(
  tensors: Mapping[str, np.ndarray], options: Mapping[str, Any], shape: ImageShape
) -> Iterator[str]:
  """Names of networks, with options, that have exactly the tensors of a checkpoint."""
  for name in filter(functools.partial(_may_match, tensors), NETWORKS):
    known = merge.default_kwargs(NETWORKS[name])
    valid = {option: value for option, value in options.items() if option in known and option != "shortcut"}
    for more in ({"shortcut": "A"}, {}) if "shortcut" in known else ({},):
      if _matches(name, valid | more, tensors, shape):
        yield merge.format_options(name, valid | more)


def _may_match(tensors: Mapping[str, np.ndarray], name: str) -> bool:
  """False for a network of certainly another depth or kind.

  Tracing every network would take long.

  The depth in a name is within four of the number of convolutions and the classifier. Names without a depth belong to
  networks with depthwise convolutions, or with tokens, for which this package knows no public PyTorch code.
  """
  convolutions = [x.shape for x in tensors.values() if x.ndim == 4]
  depth = re.search(r"(?:resnet|vgg|wrn_)(\d+)", name.lower())
  if depth:
    return abs(int(depth[1]) - len(convolutions) - 1) <= 4
  return "v" in name.lower() and any(inputs == 1 < outputs for outputs, inputs, *_ in convolutions[1:])


def _matches(
  name: str, options: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shape: ImageShape
) -> bool:
  try:
    expected = torch_weights.torch_shapes(NETWORKS[name](num_classes=1, **options), shape)
  except ValueError:
    return False
  shapes = {key: x.shape for key, x in torch_weights.match_names(expected, tensors).items()}
  weight = _classifier_key(expected)
  bias, rows = weight.replace("weight", "bias"), shapes.get(weight, (0,))[:1]
  return shapes == expected | {weight: rows + expected[weight][1:], bias: rows}
