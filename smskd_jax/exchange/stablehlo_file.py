"""A trained network as a portable program that needs nothing but JAX (and flatbuffers) to run.

program = jax.export.deserialize(bytearray(open("student.stablehlo", "rb").read()))
logits = program.call(images)  # uint8 [b, h, w, c], any b
"""

from pathlib import Path

import jax
from jax import export
import jax.numpy as jnp

from smskd_jax.exchange.exported_network import ExportedNetwork

PLATFORMS = ("cpu", "cuda", "tpu")


def write(trained: ExportedNetwork, path: Path) -> None:
  """Writes images [b, h, w, c] uint8 -> logits [b, k] as serialised StableHLO, b free, for all platforms."""
  (batch,) = export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((batch, *trained.image_shape), jnp.uint8)
  exported = export.export(jax.jit(trained.program()), platforms=PLATFORMS)(images)
  path.write_bytes(exported.serialize())
