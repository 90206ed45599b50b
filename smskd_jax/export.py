"""Exports a network of a finished run for use elsewhere, and compares it with its teachers.

  python -m smskd_jax.export runs/quickstart --network=student --format=stablehlo,onnx

writes into WORKDIR/export, beside NETWORK.json, which says what its images and classes are:

  safetensors   NETWORK.safetensors: the variables; smskd_jax.exchange.safetensors_file.read gives the network back
  stablehlo     NETWORK.stablehlo: a program for CPU, CUDA and TPU; jax.export.deserialize reads it (JAX, flatbuffers)
  onnx          NETWORK.onnx, through jax2onnx: pip install 'smskd_jax[onnx]'
  torch         NETWORK.pth: {'model': state_dict, ...} as the PyTorch network of the same name loads it

Programs take images as they are stored, uint8 [batch, height, width, channel] of any batch, and return logits:
normalisation is part of them.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

from smskd_jax import cli
from smskd_jax.errors import UserError, unknown_name_error

# Format -> ending of its file.
FORMATS = {"safetensors": "safetensors", "stablehlo": "stablehlo", "onnx": "onnx", "torch": "pth"}


def main(arguments: Sequence[str] | None = None) -> int:
  """Exports what the command line names; returns the exit status."""
  parser = cli.make_parser("export", __doc__)
  parser.add_argument("workdir", type=Path, help="the folder of a finished run")
  parser.add_argument("--network", default="student", help="its name in the run's config; default: student")
  parser.add_argument("--format", required=True, help=f"one or more of {', '.join(FORMATS)}, with commas")
  parser.add_argument("--out", type=Path, help="the folder to write to; default: WORKDIR/export")
  parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
  return cli.run(parser, arguments, _run)


def _run(flags: argparse.Namespace) -> str:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed but the latency on a CPU
  out = flags.out or flags.workdir / "export"
  return run(flags.workdir, flags.network, flags.format.split(","), out, overwrite=flags.overwrite)


def run(workdir: Path, name: str, formats: Sequence[str], out: Path, *, overwrite: bool = False) -> str:
  """Writes a network of a run in some formats; returns a table of it and its teachers, and the files.

  Raises:
    UserError: the run is not finished or has no such network, a file is there, or a format cannot be had.
  """
  from smskd_jax.exchange import run_networks  # here and not above: --help need not wait for JAX
  from smskd_jax.runtime import workdir as workdir_lib
  from smskd_jax.runtime.store import write_json

  for fmt in formats:
    if fmt not in FORMATS:
      raise unknown_name_error("--format", fmt, FORMATS)
  workdir_lib.check_writable("--out", out)
  files = {fmt: out / f"{name}.{FORMATS[fmt]}" for fmt in formats}
  for path in (*files.values(), out / f"{name}.json"):
    if path.exists() and not overwrite:
      raise UserError(f"--out: {path} is there; add --overwrite to replace it, or name another folder")
  found = run_networks.network("WORKDIR", workdir_lib.read_run("WORKDIR", workdir), name)
  out.mkdir(parents=True, exist_ok=True)
  for fmt, path in files.items():
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
      _writers()[fmt](found.trained, temporary)
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)
  write_json(out / f"{name}.json", found.trained.description() | {"made_by": found.about})
  written = [*files.values(), out / f"{name}.json"]
  return "\n".join([_comparison(found), "", *(f"wrote {p} ({_bytes(p.stat().st_size)})" for p in written)])


def _writers() -> Mapping[str, Callable[[Any, Path], None]]:
  from smskd_jax.exchange import onnx_file, safetensors_file, stablehlo_file, torch_writer

  return {
    "safetensors": safetensors_file.write,
    "stablehlo": stablehlo_file.write,
    "onnx": onnx_file.write,
    "torch": torch_writer.write_trained,
  }


def _comparison(found: Any) -> str:
  """The network and its teachers: what each costs, and how right it is."""
  from smskd_jax.models import introspection
  from smskd_jax.runtime import console

  header = ("network", "model", "parameters", "size", "FLOPs/image", "CPU, one image", "test accuracy")
  rows = []
  for one in (found, *found.teachers):
    network, shape = one.trained.network, one.trained.image_shape
    rows.append(
      (
        one.name,
        one.trained.model,
        f"{introspection.num_parameters(network, shape):,}",
        _bytes(introspection.num_bytes(network, shape)),
        console.format_si(introspection.forward_flops(network, shape)),
        f"{1e3 * latency(one.trained):.2f} ms",
        f"{one.about['test_accuracy']:.2%}",
      )
    )
  return console.format_table(header, rows)


def latency(trained: Any, *, calls: int = 50, seconds: float = 2.0) -> float:
  """The median time of one image through a network, compiled, on a CPU, in seconds."""
  import jax
  import numpy as np

  cpu = jax.devices("cpu")[0]
  image = jax.device_put(np.zeros((1, *trained.image_shape), np.uint8), cpu)
  variables = jax.device_put(trained.variables, cpu)
  predict = jax.jit(trained.predict())
  predict(variables, image).block_until_ready()  # compiles
  times: list[float] = []
  while not times or (len(times) < calls and sum(times) < seconds):
    began = time.perf_counter()
    predict(variables, image).block_until_ready()
    times.append(time.perf_counter() - began)
  return statistics.median(times)


def _bytes(size: int) -> str:
  return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


if __name__ == "__main__":
  sys.exit(main())
