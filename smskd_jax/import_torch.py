"""Imports a network that PyTorch has trained, without PyTorch.

  python -m smskd_jax.import_torch resnet32x4.pth --network=resnet32x4 --out=teachers/resnet32x4

The file is one of `torch.save` or of safetensors, with the names of the public code that the network is from:
`python -m smskd_jax.import_torch --list` says which. A config then takes the network from the folder:

  "teacher": network("resnet32x4", variables="teachers/resnet32x4")
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
import sys
from typing import Any

import numpy as np

from smskd_jax import filling
from smskd_jax.errors import UserError, unknown


def main(arguments: Sequence[str] | None = None) -> int:
  """Imports the file that the command line names; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m smskd_jax.import_torch",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("file", nargs="?", type=Path, help="the checkpoint")
  parser.add_argument(
    "--network", help="its architecture, a name of --list, perhaps with options: resnet20:width=0.5"
  )
  parser.add_argument("--out", type=Path, help="the folder to write")
  parser.add_argument(
    "--image_size", type=int, help="height and width of its images; default: 32, or 224 for ImageNet's"
  )
  parser.add_argument("--list", action="store_true", help="list the networks and stop")
  flags = parser.parse_args(arguments)
  try:
    if flags.list:
      print(_listing())
      return 0
    for name in ("file", "network", "out"):
      if getattr(flags, name) is None:
        raise UserError(f"{'FILE' if name == 'file' else f'--{name}'}: missing; see --help")
    print(run(flags.file, flags.network, flags.out, image_size=flags.image_size))
    return 0
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def run(file: Path, network: str, out: Path, *, image_size: int | None = None) -> str:
  """Writes the network of a checkpoint to a folder; returns what to say about it.

  Args:
    file: the checkpoint.
    network: its architecture, NAME or NAME:option=value,...
    out: the folder.
    image_size: height and width of its images; None: as its kind of networks has them.

  Raises:
    UserError: the file is broken, holds more than data, or is of another network; or the folder is not empty.
  """
  import jax  # here and not above: --help need not wait for JAX

  from smskd_jax.exchange import torch_reader, variables
  from smskd_jax.models import NETWORKS, torch_weights
  from smskd_jax.runtime import workdir

  name, _, text = network.partition(":")
  if name not in NETWORKS:
    raise unknown("--network", name, NETWORKS)
  options = filling.parse_items("--network: option", text, filling.keywords(NETWORKS[name]))
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out: {out} exists and is not an empty folder; choose another")
  workdir.check_writable("--out", out)
  size = image_size or (224 if name.startswith("imagenet_") else 32)
  tensors = {key.removeprefix("module."): x for key, x in _tensors(file, torch_reader).items()}
  try:
    make = lambda num_classes: NETWORKS[name](num_classes=num_classes, **options)
    image_shape = (size, size, _channels(tensors))
    made = make(_num_classes(make(1), tensors, image_shape, torch_weights))
    tree = torch_weights.from_torch(made, tensors, image_shape=image_shape)
  except ValueError as error:
    raise UserError(f"{file}: {error}") from error
  tree = variables.as_host(tree)
  variables.check_finite(str(file), tree)
  about = {"network": name, "options": options, "num_classes": made.num_classes, "source": file.name}
  fingerprint = variables.save(out, tree, about)
  count = sum(x.size for x in jax.tree.leaves(tree["params"]))
  return (
    f"{network}: {count:,} parameters, {made.num_classes} classes, fingerprint {fingerprint[:16]}, in {out}"
  )


def _tensors(file: Path, torch_reader: Any) -> dict[str, np.ndarray]:
  if file.suffix != ".safetensors":
    return torch_reader.state_dict(torch_reader.read(file), file)
  from smskd_jax.exchange import safetensors_file

  return safetensors_file.tensors(file)


def _channels(tensors: Mapping[str, np.ndarray]) -> int:
  """Of the images: what the first convolution reads."""
  first = next((x for x in tensors.values() if x.ndim == 4), None)
  if first is None:
    raise ValueError("it has no convolution")
  return first.shape[1]


def _num_classes(
  network: Any, tensors: Mapping[str, np.ndarray], image_shape: Any, torch_weights: Any
) -> int:
  """The rows of the classifier, the one matrix whose shape depends on them."""
  shapes = torch_weights.torch_shapes(network, image_shape)
  (head,) = (
    key for key, shape in shapes.items() if len(shape) == 2 and shape[0] == 1 and key.endswith("weight")
  )
  if head not in tensors:
    raise ValueError(f"it has no {head}, the classifier of {type(network).__name__}: another network?")
  return int(tensors[head].shape[0])


def _listing() -> str:
  from smskd_jax.models import NETWORKS

  return "\n".join(NETWORKS)


if __name__ == "__main__":
  sys.exit(main())
