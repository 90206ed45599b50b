"""Exports the networks of finished runs: safetensors, PyTorch, StableHLO and ONNX files.

StableHLO files expire: `jax.export` reads a file for six months of JAX releases after the release that wrote the
file. safetensors files do not expire.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import io
import json
import logging
import os
from pathlib import Path
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import models
from smskd_jax.errors import UserError, unknown_name_error
from smskd_jax.exchange import exported_network, pretrained
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.exchange.pretrained import RunNetwork
from smskd_jax.models import introspection, torch_weights
from smskd_jax.runtime import console, store, workdir

PLATFORMS = ("cpu", "cuda", "tpu")  # of StableHLO programs


def write_torch(network: ExportedNetwork, path: Path) -> None:
  """Writes a safetensors file with PyTorch's names and axes.

  The header has class_names, mean and std as JSON.

  The tensors load by `model.load_state_dict(safetensors.torch.load_file(path))` into the PyTorch network of the same
  name. The PyTorch network expects normalised images.

  Raises:
    UserError: this package knows no PyTorch network of this name.
  """
  if network.model not in models.NETWORKS:
    raise UserError(f"--format: torch_safetensors: {network.model!r} has no counterpart in PyTorch")
  header = {name: json.dumps(getattr(network, name)) for name in ("class_names", "mean", "std")}
  exported_network.write_tensors(path, torch_weights.to_torch(network.variables), header | {"format": "pt"})


def write_stablehlo(network: ExportedNetwork, path: Path) -> None:
  """Writes images uint8 [b, h, w, c] -> logits [b, k] as serialised StableHLO.

  The program is for all `PLATFORMS` and any b.

  program = jax.export.deserialize(bytearray(open("student.stablehlo", "rb").read()))
  logits = program.call(images)
  """
  (batch,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  program = jax.export.export(jax.jit(network.inference_fn()), platforms=PLATFORMS)(images)
  path.write_bytes(program.serialize())


def write_onnx(network: ExportedNetwork, path: Path) -> None:
  """Writes `images` uint8 [b, h, w, c] -> `logits` [b, k] as ONNX, any b.

  The description of the network is in the metadata.

  The converter is jax2onnx (https://github.com/enpasos/jax2onnx).

  Raises:
    UserError: jax2onnx is not installed.
  """
  # jax2onnx logs a traceback for each of its parts that need an older JAX, and prints its progress.
  logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError(
      f"--format: onnx needs jax2onnx ({error}); pip install 'smskd_jax[onnx]', "
      "or pip install -e '.[onnx]' in a checkout"
    ) from error
  (batch,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *network.image_shape), jnp.uint8)
  with contextlib.redirect_stdout(io.StringIO()):
    model = jax2onnx.to_onnx(
      network.inference_fn(),
      [images],
      model_name="smskd_jax",
      input_names=["images"],
      output_names=["logits"],
    )
  for name, value in network.description().items():
    entry = model.metadata_props.add()
    entry.key, entry.value = name, json.dumps(value)
  path.write_bytes(model.SerializeToString())


class Format(NamedTuple):
  """A file format of an export."""

  suffix: str
  write: Callable[[ExportedNetwork, Path], None]


FORMATS: Mapping[str, Format] = {
  "safetensors": Format("safetensors", exported_network.write),
  "torch_safetensors": Format("torch.safetensors", write_torch),
  "stablehlo": Format("stablehlo", write_stablehlo),
  "onnx": Format("onnx", write_onnx),
}


def export_network(
  folder: Path, name: str, formats: Sequence[str], out: Path, *, overwrite: bool = False
) -> str:
  """Writes a network of a run in some formats.

  Args:
    folder: workdir of the run.
    name: of the network in the run's config.
    formats: names of FORMATS.
    out: folder to write to.
    overwrite: replace existing files.

  Returns:
    A table of the network and its teachers, and one line for each written file.

  Raises:
    UserError: the run is not finished or has no such network, a file exists, or a format is unknown.
  """
  _check_formats(formats)
  workdir.check_writable("--out", out)
  files = {fmt: out / f"{name}.{FORMATS[fmt].suffix}" for fmt in formats}
  description = out / f"{name}.json"
  for path in (*files.values(), description):
    if path.exists() and not overwrite:
      raise UserError(f"--out: {path} is there; add --overwrite to replace it, or name another folder")
  network = pretrained.load_run_network("WORKDIR", workdir.read_run("WORKDIR", folder), name)
  out.mkdir(parents=True, exist_ok=True)
  for fmt, path in files.items():
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
      FORMATS[fmt].write(network.exported, temporary)
      temporary.replace(path)
    finally:
      temporary.unlink(missing_ok=True)
  store.write_json(description, network.exported.description() | {"made_by": network.provenance})
  written = [f"wrote {p} ({_format_bytes(p.stat().st_size)})" for p in (*files.values(), description)]
  return "\n".join([_cost_table(network), "", *written])


def _check_formats(formats: Sequence[str]) -> None:
  for fmt in formats:
    if fmt == "torch":
      raise UserError("--format: 'torch' is now 'torch_safetensors', a safetensors file with PyTorch's names")
    if fmt not in FORMATS:
      raise unknown_name_error("--format", fmt, FORMATS)


def _cost_table(network: RunNetwork) -> str:
  """Size, FLOPs, CPU latency and test accuracy of a network and its teachers."""
  header = ("network", "model", "parameters", "size", "FLOPs/image", "CPU, one image", "test accuracy")
  rows = []
  for one in (network, *network.teachers):
    module, shape = one.exported.network, one.exported.image_shape
    rows.append(
      (
        one.name,
        one.exported.model,
        f"{introspection.num_parameters(module, shape):,}",
        _format_bytes(introspection.num_bytes(module, shape)),
        console.format_si(introspection.forward_flops(module, shape)),
        f"{1e3 * cpu_latency(one.exported):.2f} ms",
        f"{one.provenance['test_accuracy']:.2%}",
      )
    )
  return console.format_table(header, rows)


def cpu_latency(network: ExportedNetwork, *, calls: int = 50, seconds: float = 2.0) -> float:
  """Median seconds of compiled inference of one image on a CPU.

  Stops after `calls` or `seconds`.
  """
  cpu = jax.devices("cpu")[0]
  image = jax.device_put(np.zeros((1, *network.image_shape), np.uint8), cpu)
  variables = jax.device_put(network.variables, cpu)
  predict = jax.jit(network.predict_fn())
  predict(variables, image).block_until_ready()  # compiles
  times: list[float] = []
  while not times or (len(times) < calls and sum(times) < seconds):
    start = time.perf_counter()
    predict(variables, image).block_until_ready()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def _format_bytes(size: int) -> str:
  return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
