"""Imports a network that PyTorch has trained, without PyTorch.

  python -m smskd_jax.import_torch resnet56.pth --network=resnet56 --out=teachers/resnet56 \\
    --mean=0.5071,0.4867,0.4408 --std=0.2675,0.2565,0.2761

The file is one of `torch.save` (of any version) or of safetensors, with the names of the public code that the network
is from: mdistiller and RepDistiller, torchvision, the KD survey, and others that differ in the names of classifier and
shortcut. `python -m smskd_jax.import_torch --list` lists the networks; options follow a colon, as in
`--network=resnet56:shortcut=A` for shortcuts without parameters.

--mean and --std are those by which the network's images were normalised in training, of images whose white is 1. The
network is then fed with images of that normalisation everywhere; without them, with that of the data that it meets.

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
  """Imports the file that the command line names; returns the exit status."""
  parser = cli.make_parser("import_torch", __doc__)
  parser.add_argument("file", nargs="?", type=Path, help="the checkpoint")
  parser.add_argument(
    "--network", help="its architecture, a name of --list, perhaps with options: resnet20:width=0.5"
  )
  parser.add_argument("--out", type=Path, help="the folder to write")
  parser.add_argument(
    "--image_size", type=int, help="height and width of its images; default: 32, or 224 for ImageNet's"
  )
  parser.add_argument("--mean", help="of its images in training: one value for each channel, or one for all")
  parser.add_argument("--std", help="likewise, the deviation")
  parser.add_argument("--list", action="store_true", help="list the networks and stop")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  if flags.list:
    from smskd_jax.models import NETWORKS

    return "\n".join(NETWORKS)
  for name in ("file", "network", "out"):
    if getattr(flags, name) is None:
      raise UserError(f"{'FILE' if name == 'file' else f'--{name}'}: missing; see --help")
  more = {name: getattr(flags, name) for name in ("image_size", "mean", "std")}
  return run(flags.file, flags.network, flags.out, **more)


def run(
  file: Path,
  network: str,
  out: Path,
  *,
  image_size: int | None = None,
  mean: str | None = None,
  std: str | None = None,
) -> str:
  """Writes the network of a checkpoint to a folder; returns a line about it.

  Args:
    file: the checkpoint.
    network: its architecture, NAME or NAME:option=value,...
    out: the folder.
    image_size: height and width of its images; None: as its kind of networks has them.
    mean: of its images in training, numbers joined by commas; None: not known.
    std: likewise, the deviation.

  Raises:
    UserError: the file is broken, holds more than data, or is of another network; the normalisation is none of its
      images; or the folder is not empty.
  """
  import jax  # here and not above: --help need not wait for JAX

  from smskd_jax.data.resize import MAX_IMAGE_SIZE
  from smskd_jax.exchange import normalization, torch_import, variables
  from smskd_jax.runtime import workdir

  name, options = torch_import.parse(network)
  stated = normalization.parse(mean, std)
  if image_size is not None and not 8 <= image_size <= MAX_IMAGE_SIZE:
    raise UserError(f"--image_size: {image_size} is not in 8 to {MAX_IMAGE_SIZE}, pixels of height and width")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"--out: {out} exists and is not an empty folder; choose another")
  workdir.check_writable("--out", out)
  imported = torch_import.network(file, name, options, image_size)
  own = None if stated is None else normalization.of_channels(stated, imported.image_shape[2])
  tree = variables.to_numpy(imported.variables)
  variables.check_finite(str(file), tree)
  about = imported._asdict() | {"normalization": own and own._asdict(), "source": file.name}
  del about["variables"]
  fingerprint = variables.save(out, tree, about)
  count = sum(x.size for x in jax.tree.leaves(tree["params"]))
  return f"{network}: {count:,} parameters, {imported.num_classes} classes, fingerprint {fingerprint[:16]}, in {out}"


if __name__ == "__main__":
  sys.exit(main())
