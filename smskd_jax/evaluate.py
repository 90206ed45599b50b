"""Evaluates a trained network on any data, and compares it with another network.

  python -m smskd_jax.evaluate teachers/resnet56 --data=npz:cifar100.npz
  python -m smskd_jax.evaluate runs/quickstart --network=student --data=fashion_mnist_small --teacher=teachers/vgg8

PATH is the folder of an imported network, the workdir of a run, a stage of a store, a checkpoint of variables, or a
safetensors file of smskd_jax.export. Prints one metric a line:

  accuracy, top5        fraction of images whose class has the largest logit, one of the five largest
  nll                   mean of -log p(class), in nats
  ece, ace, brier       calibration: expected and adaptive calibration error, Brier score
  teacher_agreement     fraction of images for which both networks predict the same class
  teacher_kl            mean of KL(teacher || network), in nats
  teacher_regressions   fraction of images that only the teacher classifies correctly
  teacher_improvements  fraction of images that only the network classifies correctly
  teacher_iou           IoU of the sets of correctly classified images

Images are normalised as in the network's training if PATH stores the normalisation, else by the mean and deviation of
the data's training images.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys

from smskd_jax import cli
from smskd_jax.errors import UserError

SPLITS = ("test", "train")


def main(arguments: Sequence[str] | None = None) -> int:
  """Evaluates a network; returns the exit status."""
  parser = cli.make_parser("evaluate", __doc__)
  parser.add_argument("path", type=Path, help="the trained network")
  parser.add_argument(
    "--data", required=True, help="a source, as data.source of a config: cifar100, npz:FILE"
  )
  parser.add_argument("--folder", default="", help="of the source's files, where the source needs one")
  parser.add_argument("--split", default="test", help=f"one of {', '.join(SPLITS)}; default: test")
  parser.add_argument("--image_size", type=int, default=0, help="resize the images; default: no resizing")
  parser.add_argument(
    "--network",
    help="of a run, a name of its config; of variables alone, their architecture: resnet20:width=0.5",
  )
  parser.add_argument("--mean", help="of the network's images, instead of the stored one: 0.5,0.5,0.5")
  parser.add_argument("--std", help="standard deviation of the network's images, as --mean")
  parser.add_argument("--teacher", type=Path, help="another trained network, to compare with")
  parser.add_argument("--teacher_network", help="as --network, of the teacher")
  parser.add_argument("--batch_size", type=int, default=512, help="of all devices; default: 512")
  parser.add_argument("--json", type=Path, help="file to write the metrics to")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  from smskd_jax.exchange import evaluation  # late imports: --help does not wait for JAX
  from smskd_jax.runtime import compilation_cache, store, workdir

  if flags.json is not None:
    if flags.json.is_dir():
      raise UserError(f"--json: {flags.json} is a folder; name a file")
    workdir.check_writable("--json", flags.json.parent)
  compilation_cache.enable(None)
  options = {name: value for name, value in vars(flags).items() if name not in ("path", "data", "json")}
  result = evaluation.evaluate_network(flags.path, flags.data, **options)
  if flags.json is not None:
    inputs = {"path": str(flags.path), "data": flags.data, "split": flags.split}
    store.write_json(
      flags.json, inputs | result._asdict() | {"normalization": result.normalization._asdict()}
    )
  return str(result)


if __name__ == "__main__":
  sys.exit(main())
