"""Imports a PyTorch checkpoint, without PyTorch.

  python -m smskd_jax.import_torch resnet56.pth --network=resnet56 --out=teachers/resnet56 \\
    --mean=0.5071,0.4867,0.4408 --std=0.2675,0.2565,0.2761

The file is one of `torch.save` (of any version) or of safetensors. Its names are those of the public code of the
network: mdistiller and RepDistiller, torchvision, the KD survey, and others that differ in the names of classifier and
shortcut. `python -m smskd_jax.import_torch --list` lists the networks; options follow a colon, as in
`--network=resnet56:shortcut=A` for shortcuts without parameters.

--mean and --std are those of the network's images in training, for images whose white is 1. The imported network is
always applied to images of this normalisation; without the flags, to images of the data set's normalisation.

A config takes the network from the folder:

  "teacher": network("resnet56", variables="teachers/resnet56")
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli
from smskd_jax.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
  """Imports a file; returns the exit status."""
  parser = cli.make_parser("import_torch", __doc__)
  parser.add_argument("file", nargs="?", type=Path, help="the checkpoint")
  parser.add_argument(
    "--network", help="architecture: a name of --list, perhaps with options: resnet20:width=0.5"
  )
  parser.add_argument("--out", type=Path, help="folder to write")
  parser.add_argument(
    "--image_size",
    type=int,
    help="height and width of its images; default: 32, or 224 for networks of ImageNet",
  )
  parser.add_argument("--mean", help="of its images in training: one value for each channel, or one for all")
  parser.add_argument("--std", help="standard deviation of its images in training, as --mean")
  parser.add_argument("--list", action="store_true", help="list the networks and stop")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  if flags.list:
    from smskd_jax.models import NETWORKS

    return "\n".join(NETWORKS)
  for name in ("file", "network", "out"):
    if getattr(flags, name) is None:
      raise UserError(f"{'FILE' if name == 'file' else f'--{name}'}: missing; see --help")
  from smskd_jax.exchange import torch_import  # a late import: --help does not wait for JAX

  return torch_import.import_file(
    flags.file, flags.network, flags.out, image_size=flags.image_size, mean=flags.mean, std=flags.std
  )


if __name__ == "__main__":
  sys.exit(main())
