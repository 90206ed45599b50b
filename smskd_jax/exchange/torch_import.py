"""Networks of PyTorch checkpoints: the variables of a named network, or the names of those that would fit."""

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
import re
from typing import Any, NamedTuple

import numpy as np

from smskd_jax.config import merge
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.exchange import safetensors_file, torch_reader
from smskd_jax.models import NETWORKS, torch_weights
from smskd_jax.models.introspection import ImageShape


class Imported(NamedTuple):
  """A network of a checkpoint."""

  network: str  # a name of NETWORKS
  options: dict[str, Any]
  num_classes: int
  image_shape: ImageShape  # [h, w, c]
  variables: Any  # host arrays, of the checkpoint's types


def tensors(file: Path) -> dict[str, np.ndarray]:
  """The tensors of a file of `torch.save` or of safetensors, by name.

  Raises:
    UserError: the file is broken, or holds more than data.
  """
  if file.suffix == ".safetensors":
    return safetensors_file.tensors(file)
  return torch_reader.state_dict(torch_reader.read(file), file)


def parse(text: str) -> tuple[str, dict[str, Any]]:
  """A network's name and options, of 'NAME' or 'NAME:option=value,...'.

  Raises:
    UserError: an unknown name or option, or a value that the network refuses.
  """
  name, _, given = text.partition(":")
  if name not in NETWORKS:
    raise unknown_name_error("--network", name, NETWORKS)
  found = merge.parse_items("--network: option", given, merge.default_kwargs(NETWORKS[name]))
  try:
    NETWORKS[name](num_classes=2, **found)
  except ValueError as error:
    raise UserError(f"--network: {error}") from error
  return name, found


def network(file: Path, name: str, given: Mapping[str, Any], image_size: int | None) -> Imported:
  """The network of a checkpoint.

  Args:
    file: the checkpoint.
    name: of NETWORKS.
    given: its options.
    image_size: height and width of its images; None: 32, or 224 for ImageNet's.

  Raises:
    UserError: the file is broken, holds more than data, or is of another network: names those that would fit.
  """
  found = tensors(file)
  inputs = {x.shape[1] for x in found.values() if x.ndim == 4}
  if not inputs:
    raise UserError(f"{file}: it has no convolution")
  size = image_size or (224 if name.startswith("imagenet_") else 32)
  shape = (size, size, 3 if 3 in inputs else 1)  # images are of RGB or grey
  count = _num_classes(name, given, found, shape)
  made = NETWORKS[name](num_classes=count or 1, **given)
  try:
    return Imported(
      name, dict(given), count or 1, shape, torch_weights.from_torch(made, found, image_shape=shape)
    )
  except ValueError as error:
    others = list(_fitting(found, given, shape))
    if others:
      which = " or of ".join(others)
      raise UserError(
        f"{file}: these are the weights of {which}, not of {merge.format_options(name, given)}; give "
        f"--network={others[0]}"
      ) from error
    raise UserError(f"{file}: {error}") from error


def _num_classes(
  name: str, given: Mapping[str, Any], found: Mapping[str, np.ndarray], shape: ImageShape
) -> int:
  """The rows of the classifier, the one matrix whose shape depends on them; 0 where the checkpoint has none."""
  shapes = torch_weights.torch_shapes(NETWORKS[name](num_classes=1, **given), shape)
  head = torch_weights.match_names(shapes, found).get(_classifier(shapes))
  return 0 if head is None or head.ndim != 2 else head.shape[0]


def _classifier(shapes: Mapping[str, tuple[int, ...]]) -> str:
  """The key of the classifier's weights, of a network with one class."""
  (head,) = (key for key, of in shapes.items() if len(of) == 2 and of[0] == 1 and key.endswith("weight"))
  return head


def _fitting(found: Mapping[str, np.ndarray], given: Mapping[str, Any], shape: ImageShape) -> Iterator[str]:
  """Names of networks, with options, of which a checkpoint has exactly the tensors."""
  for name in filter(functools.partial(_is_near, found), NETWORKS):
    known = merge.default_kwargs(NETWORKS[name])
    own = {option: value for option, value in given.items() if option in known and option != "shortcut"}
    for more in ({"shortcut": "A"}, {}) if "shortcut" in known else ({},):
      if _fits(name, own | more, found, shape):
        yield merge.format_options(name, own | more)


def _is_near(found: Mapping[str, np.ndarray], name: str) -> bool:
  """False where a network is of another depth or kind for certain: to trace each takes a while.

  The depth in a name is within four of the number of convolutions and the classifier. Names without a depth are of
  networks with depthwise convolutions, or of tokens, of which there is no public code that this package knows.
  """
  convolutions = [x.shape for x in found.values() if x.ndim == 4]
  depth = re.search(r"(?:resnet|vgg|wrn_)(\d+)", name.lower())
  if depth:
    return abs(int(depth[1]) - len(convolutions) - 1) <= 4
  return "v" in name.lower() and any(inputs == 1 < outputs for outputs, inputs, *_ in convolutions[1:])


def _fits(name: str, given: Mapping[str, Any], found: Mapping[str, np.ndarray], shape: ImageShape) -> bool:
  try:
    expected = torch_weights.torch_shapes(NETWORKS[name](num_classes=1, **given), shape)
  except ValueError:
    return False
  renamed = torch_weights.match_names(expected, found)
  shapes = {key: x.shape for key, x in renamed.items()}
  weight = _classifier(expected)
  bias, rows = weight.replace("weight", "bias"), shapes.get(weight, (0,))[:1]
  return shapes == expected | {weight: rows + expected[weight][1:], bias: rows}
