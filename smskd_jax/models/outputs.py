"""End of a network: mean of the last map and a linear classifier, as `Outputs`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.layers import basic
from smskd_jax.layers.batch_norm import BatchNorm
from smskd_jax.types import Head, Norm, Outputs


class FeatureLayer(NamedTuple):
  """Feature map after and before its activation, and the batch norm before that."""

  feature: jax.Array  # [b, h, w, c]
  preactivation: jax.Array  # [b, h, w, c]
  norm: Norm | None = None


def norm_params(norm: BatchNorm) -> Norm:
  """Scale and offset of a batch norm that has been called."""
  return Norm(**norm.variables["params"])


def make_outputs(
  layers: Sequence[FeatureLayer],
  final_map: jax.Array,
  num_classes: int,
  *,
  name: str,
  kernel_init: Any = None,
) -> Outputs:
  """`Outputs` of feature layers and of the final map [b, h, w, d], which is classified.

  Mean and classifier are computed in the parameters' type, for any type of the maps: their cost is negligible, and
  losses read the logits. Weights start as PyTorch's; with `kernel_init`, biases start at zero.
  """
  pooled = jnp.mean(final_map.astype(jnp.promote_types(final_map.dtype, jnp.float32)), axis=(1, 2))
  classifier = basic.linear(num_classes, pooled.shape[-1], kernel_init=kernel_init, name=name)
  return Outputs(
    classifier(pooled),
    pooled,
    tuple(layer.feature for layer in layers),
    tuple(layer.preactivation for layer in layers),
    final_map=final_map,
    head=Head(**classifier.variables["params"]),
    norms=tuple(layer.norm for layer in layers),
  )
