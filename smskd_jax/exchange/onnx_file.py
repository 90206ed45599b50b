"""A trained network as an ONNX model, by jax2onnx (https://github.com/enpasos/jax2onnx)."""

import contextlib
import io
import json
import logging
from pathlib import Path

import jax
from jax import export
import jax.numpy as jnp

from smskd_jax.errors import UserError
from smskd_jax.exchange.exported_network import ExportedNetwork


def write(trained: ExportedNetwork, path: Path) -> None:
  """Writes `images` [b, h, w, c] uint8 -> `logits` [b, k], b free; classes and all else in its metadata.

  Raises:
    UserError: jax2onnx is not installed.
  """
  # It logs a traceback for each of its parts that this JAX is too new for, and prints what it finds on its way.
  logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)
  try:
    import jax2onnx
  except ImportError as error:
    raise UserError(
      f"--format: onnx needs jax2onnx ({error}); pip install 'smskd_jax[onnx]', "
      "or pip install -e '.[onnx]' in a checkout"
    ) from error
  (batch,) = export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *trained.image_shape), jnp.uint8)
  with contextlib.redirect_stdout(io.StringIO()):
    model = jax2onnx.to_onnx(
      trained.program(), [images], model_name="smskd_jax", input_names=["images"], output_names=["logits"]
    )
  for name, value in trained.description().items():
    entry = model.metadata_props.add()
    entry.key, entry.value = name, json.dumps(value)
  path.write_bytes(model.SerializeToString())
