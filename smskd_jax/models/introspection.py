"""Shapes, size and cost of networks by tracing, without computing anything.

A network is traced once for each shape of images. Nothing is allocated.
"""

from collections.abc import Mapping
import contextlib
import functools
import math
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.layers import convolution
from smskd_jax.types import Outputs

ImageShape = tuple[int, int, int]  # h, w, c


def image_spec(shape: ImageShape) -> jax.ShapeDtypeStruct:
  """Shape of a batch of one image, the input of networks."""
  return jax.ShapeDtypeStruct((1, *shape), jnp.float32)


@functools.lru_cache
def init_shapes(network: nn.Module, shape: ImageShape) -> tuple[Outputs, Any]:
  """Shapes of a network's outputs and of its variables, in that order.

  Raises:
    ValueError: the network does not take images of this shape.
  """

  # The key is made within: outside it would start JAX, before the number of its devices is settled.
  def trace(x):
    return network.init_with_output(jax.random.key(0), x)

  return cast(tuple[Outputs, Any], jax.eval_shape(trace, image_spec(shape)))


def output_shapes(network: nn.Module, shape: ImageShape) -> Outputs:
  """Shapes of a network's outputs for one image."""
  return init_shapes(network, shape)[0]


def variable_shapes(network: nn.Module, shape: ImageShape) -> Any:
  """The shapes of a network's variables."""
  return init_shapes(network, shape)[1]


def num_parameters(network: nn.Module, shape: ImageShape) -> int:
  """Number of trained parameters."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(variable_shapes(network, shape)["params"]))


def num_bytes(network: nn.Module, shape: ImageShape) -> int:
  """The size of all variables, batch statistics included."""
  leaves = jax.tree.leaves(variable_shapes(network, shape))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


@functools.lru_cache
def forward_flops(network: nn.Module, shape: ImageShape) -> float:
  """Floating-point operations of a forward pass on one image, a multiply-add being two."""

  def forward(values, x):
    return cast(Outputs, network.apply(values, x)).logits

  # Forms with fewer operations do not count. JAX analyzes programs that are not compiled only for CPUs.
  with convolution.use_xla_convolution(), jax.default_device(_cpu()):
    lowered: Any = jax.jit(forward).lower(variable_shapes(network, shape), image_spec(shape))
    analysis = lowered.cost_analysis() or lowered.compile().cost_analysis()
  return float(analysis["flops"])


def _cpu() -> jax.Device | None:
  """A device of the CPU; None, the default device, where JAX may not use the CPU."""
  with contextlib.suppress(RuntimeError):
    return jax.local_devices(backend="cpu")[0]
  return None


def shape_mismatches(
  expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """Differences between expected and actual shapes by name, five names of a kind."""
  missing = [name for name in expected if name not in actual]
  unexpected = [name for name in actual if name not in expected]
  misshapen = [
    f"{name} {list(actual[name])} instead of {list(shape)}"
    for name, shape in expected.items()
    if name in actual and actual[name] != shape
  ]
  kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
  return [f"{kind}: {_abbreviate(names)}" for kind, names in kinds if names]


def _abbreviate(names: list[str], count: int = 5) -> str:
  """The first few names, and how many more there are."""
  more = f" and {len(names) - count} more" if len(names) > count else ""
  return ", ".join(names[:count]) + more


def check_outputs(network: nn.Module, shape: ImageShape, num_classes: int) -> None:
  """Raises ValueError for a network that lacks outputs of losses or the training step.

  Raises:
    ValueError: names the actual and the expected output.
  """
  found = output_shapes(network, shape)
  if not isinstance(found, Outputs):
    raise ValueError(
      f"it returns {type(found).__name__}, not smskd_jax.types.Outputs; smskd_jax.models.outputs.make_outputs makes one"
    )

  def shape_of(x):
    return list(getattr(x, "shape", ())) or type(x).__name__

  if shape_of(found.logits) != [1, num_classes]:
    raise ValueError(f"its logits are {shape_of(found.logits)}, not [b, k] = {[1, num_classes]}")
  if len(shape_of(found.embedding)) != 2:
    raise ValueError(f"its embedding is {shape_of(found.embedding)}, not [b, d]")
  for name in ("features", "preactivations"):
    maps = getattr(found, name)
    if not isinstance(maps, tuple) or not all(len(shape_of(x)) == 4 for x in maps):
      raise ValueError(f"its {name} are not a tuple of maps [b, h, w, c]")
  if len(found.features) != len(found.preactivations):
    raise ValueError(f"it has {len(found.features)} features, but {len(found.preactivations)} preactivations")
