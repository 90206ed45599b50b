"""A trained network as a safetensors file, which any framework reads, and back."""

import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from smskd_jax.errors import UserError
from smskd_jax.exchange import exported_network as trained_lib
from smskd_jax.exchange.exported_network import ExportedNetwork

_DESCRIPTION = "network"  # the key of the file's header under which the description is


def tensors(path: Path) -> dict[str, np.ndarray]:
  """The arrays of any safetensors file, by name.

  Raises:
    UserError: there is no such file, or it is broken.
  """
  if not path.is_file():
    raise UserError(f"{path}: there is no such file")
  try:
    return load_file(path)
  except (SafetensorError, OSError, KeyError) as error:
    raise UserError(f"{path}: broken or not a safetensors file ({error})") from error


def write(trained: ExportedNetwork, path: Path) -> None:
  """Writes variables under their paths ('params/layer1_0/conv1/kernel') and what they are, as JSON in the header."""
  flat = traverse_util.flatten_dict(trained.variables, sep="/")
  arrays = {name: np.ascontiguousarray(x) for name, x in flat.items()}
  header = {_DESCRIPTION: json.dumps(trained.description()), "format": "np"}
  path.write_bytes(save(arrays, metadata=header))


def variables(path: Path) -> dict[str, Any]:
  """The variables in a file that `write` has written."""
  return traverse_util.unflatten_dict(tensors(path), sep="/")


def read(path: str | Path) -> ExportedNetwork:
  """The network in a file that `write` has written: `.network`, `.variables`, `.program()`.

  Raises:
    UserError: there is no such file, or it is broken or another one.
  """
  path = Path(path)
  found, described = variables(path), description(path)
  if described is None:
    raise UserError(f"{path}: a safetensors file, but its header does not describe a network of this package")
  return trained_lib.of_description(described, found)


def description(path: Path) -> dict[str, Any] | None:
  """The description of the network in a file's header; None where there is none.

  Raises:
    UserError: there is no such file, or it is broken.
  """
  if not path.is_file():
    raise UserError(f"{path}: there is no such file")
  try:
    with safe_open(path, framework="numpy") as file:
      header = file.metadata() or {}
  except (SafetensorError, OSError) as error:
    raise UserError(f"{path}: broken or not a safetensors file ({error})") from error
  return json.loads(header[_DESCRIPTION]) if _DESCRIPTION in header else None
