"""Exports a network of a finished run, and compares it with its teachers.

Compares cost and accuracy.

  python -m smskd_jax.export runs/quickstart --network=student --format=stablehlo,onnx

writes into WORKDIR/export, beside NETWORK.json, the description of the images and classes:

  safetensors         NETWORK.safetensors: variables by path; smskd_jax.exchange.exported_network.read reads the network
  torch_safetensors   NETWORK.torch.safetensors: PyTorch's names, for safetensors.torch.load_file and load_state_dict
  stablehlo           NETWORK.stablehlo: a program for CPU, CUDA and TPU, for jax.export.deserialize (JAX, flatbuffers)
  onnx                NETWORK.onnx, through jax2onnx: pip install 'smskd_jax[onnx]'

StableHLO and ONNX programs take uint8 images [batch, height, width, channel] of any batch, normalise them, and return
logits. StableHLO files expire six months of JAX releases after their own; safetensors files do not expire.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys

from smskd_jax import cli

FORMATS = ("safetensors", "torch_safetensors", "stablehlo", "onnx")


def main(arguments: Sequence[str] | None = None) -> int:
  """Exports a network; returns the exit status."""
  parser = cli.make_parser("export", __doc__)
  parser.add_argument("workdir", type=Path, help="folder of a finished run")
  parser.add_argument("--network", default="student", help="its name in the run's config; default: student")
  parser.add_argument("--format", required=True, help=f"one or more of {', '.join(FORMATS)}, with commas")
  parser.add_argument("--out", type=Path, help="folder to write to; default: WORKDIR/export")
  parser.add_argument("--overwrite", action="store_true", help="replace existing files")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the only computation is the latency on a CPU
  from smskd_jax.exchange import exporters  # a late import: --help does not wait for JAX

  out, formats = flags.out or flags.workdir / "export", flags.format.split(",")
  return exporters.export_network(flags.workdir, flags.network, formats, out, overwrite=flags.overwrite)


if __name__ == "__main__":
  sys.exit(main())
