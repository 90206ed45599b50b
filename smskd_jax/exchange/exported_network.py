"""A trained network with its class names and image statistics, and its safetensors file."""

from collections.abc import Callable
import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from smskd_jax import models
from smskd_jax.config import merge
from smskd_jax.data import augment
from smskd_jax.errors import UserError
from smskd_jax.layers import convolution
from smskd_jax.models.introspection import ImageShape
from smskd_jax.training import evaluate

_DESCRIPTION = "network"  # header entry of a safetensors file: the network's description as JSON


class ExportedNetwork(NamedTuple):
  """A network with everything that inference needs."""

  model: str  # a name of smskd_jax.models.MODELS, or custom:package.module:Class
  options: dict[str, Any]  # of the model
  variables: Any  # host arrays
  image_shape: ImageShape  # [h, w, c]
  mean: tuple[float, ...]  # per channel, for images whose white is 1
  std: tuple[float, ...]
  class_names: tuple[str, ...]

  @property
  def network(self) -> nn.Module:
    """The Flax module."""
    return models.factory(self.model)(num_classes=len(self.class_names), **self.options)

  def predict_fn(self) -> Callable[[Any, jax.Array], jax.Array]:
    """Pure function (variables, images uint8 [b, h, w, c]) -> logits [b, k]."""
    normalize = functools.partial(augment.normalize, mean=self.mean, std=self.std)
    return evaluate.make_predict(self.network, normalize)

  def inference_fn(self) -> Callable[[jax.Array], jax.Array]:
    """Pure function images uint8 [b, h, w, c] -> logits [b, k].

    The variables are constants.

    Convolutions are XLA's own, because other software cannot read this package's CPU convolutions.
    """
    predict = self.predict_fn()

    def infer(image):
      with convolution.use_xla_convolution():
        return predict(self.variables, image)

    return infer

  def description(self) -> dict[str, Any]:
    """Everything except the variables, as JSON values."""
    return {
      "model": self.model,
      "options": self.options,
      "images": {
        "shape": list(self.image_shape),
        "layout": "[batch, height, width, channel], uint8",
        "mean": list(self.mean),
        "std": list(self.std),
      },
      "class_names": list(self.class_names),
    }


def from_description(description: dict[str, Any], variables: Any) -> ExportedNetwork:
  """The inverse of `ExportedNetwork.description`."""
  images = description["images"]
  height, width, channels = images["shape"]
  return ExportedNetwork(
    description["model"],
    merge.to_plain(description["options"]),
    variables,
    (height, width, channels),
    tuple(images["mean"]),
    tuple(images["std"]),
    tuple(description["class_names"]),
  )


def write(network: ExportedNetwork, path: Path) -> None:
  """Writes a safetensors file: variables by path, description as JSON in the header.

  safetensors files do not expire: any framework reads them.
  """
  flat = traverse_util.flatten_dict(network.variables, sep="/")
  write_tensors(path, flat, {_DESCRIPTION: json.dumps(network.description()), "format": "np"})


def read(path: str | Path) -> ExportedNetwork:
  """Reads a file of `write`.

  Raises:
    UserError: the file is absent or broken, or does not describe a network of this package.
  """
  path = Path(path)
  variables, description = read_variables(path), read_description(path)
  if description is None:
    raise UserError(f"{path}: a safetensors file, but its header does not describe a network of this package")
  return from_description(description, variables)


def read_variables(path: Path) -> dict[str, Any]:
  """The variables in a file of `write`; errors as `read_tensors`."""
  return traverse_util.unflatten_dict(read_tensors(path), sep="/")


def read_description(path: Path) -> dict[str, Any] | None:
  """The description in the header of a safetensors file; None where there is none.

  Raises:
    UserError: the file is absent or broken.
  """
  _check_file(path)
  try:
    with safe_open(path, framework="numpy") as file:
      header = file.metadata() or {}
  except (SafetensorError, OSError) as error:
    raise UserError(f"{path}: broken or not a safetensors file ({error})") from error
  return json.loads(header[_DESCRIPTION]) if _DESCRIPTION in header else None


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """The arrays of any safetensors file, by name.

  Raises:
    UserError: the file is absent or broken.
  """
  _check_file(path)
  try:
    return load_file(path)
  except (SafetensorError, OSError, KeyError) as error:
    raise UserError(f"{path}: broken or not a safetensors file ({error})") from error


def write_tensors(path: Path, tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
  """Writes a safetensors file of arrays by name, with a header of strings."""
  path.write_bytes(save({name: np.ascontiguousarray(x) for name, x in tensors.items()}, metadata=header))


def _check_file(path: Path) -> None:
  if not path.is_file():
    raise UserError(f"{path}: there is no such file")
