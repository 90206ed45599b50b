"""How a network ends: its taps, the mean of its last map and a linear classifier, as `Outputs`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.layers import basic
from smskd_jax.layers.batch_norm import BatchNorm
from smskd_jax.state import Head, Norm, Outputs


class Tap(NamedTuple):
  """A map that losses may read, after its activation and before, and the batch norm that it comes from."""

  feature: jax.Array  # [b, h, w, c]
  preactivation: jax.Array  # [b, h, w, c]
  norm: Norm | None = None


def parameters(norm: BatchNorm) -> Norm:
  """Scale and offset of a batch norm that has been called."""
  return Norm(**norm.variables["params"])


def classify(
  taps: Sequence[Tap], unpooled: jax.Array, num_classes: int, *, name: str, kernel_init: Any = None
) -> Outputs:
  """What a network says, from its taps and the map [b, h, w, d] whose mean is classified.

  Mean and classifier are computed in the parameters' type, whatever the type of the maps: they cost nothing, and losses
  read the logits. Weights start as PyTorch's, or, with `kernel_init`, as it says and with biases of zero.
  """
  pooled = jnp.mean(unpooled.astype(jnp.promote_types(unpooled.dtype, jnp.float32)), axis=(1, 2))
  classifier = basic.linear(num_classes, pooled.shape[-1], kernel_init=kernel_init, name=name)
  return Outputs(
    classifier(pooled),
    pooled,
    tuple(tap.feature for tap in taps),
    tuple(tap.preactivation for tap in taps),
    unpooled=unpooled,
    head=Head(**classifier.variables["params"]),
    norms=tuple(tap.norm for tap in taps),
  )
