"""Trained modules of methods: shared connectors, and Flax modules as pure functions."""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.layers import basic
from smskd_jax.types import MethodVariables


class ConvNorm(nn.Module):
  """Convolution without bias, batch norm and optionally ReLU: a connector of maps."""

  channels: int
  kernel_size: int = 1
  relu: bool = False
  kernel_init: Any = basic.uniform

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The map [b, h, w, channels]."""
    x = basic.conv(self.channels, self.kernel_size, kernel_init=self.kernel_init, name="conv")(x)
    x = basic.norm(train=True, axis_name=axis_name, name="norm")(x)
    return nn.relu(x) if self.relu else x


class Projections(nn.Module):
  """1x1 convolutions to the teacher's channels; maps of equally many channels are unchanged."""

  channels: tuple[int, ...]  # of the teacher's maps
  prefix: str = "tap"  # of the convolutions' names

  @nn.compact
  def __call__(self, features: tuple[jax.Array, ...], axis_name: str | None = None) -> tuple[jax.Array, ...]:
    """The student's maps, each [b, h, w, c of the teacher]."""
    del axis_name

    def project(i, x, c):
      conv = basic.conv(c, 1, kernel_init=basic.uniform, name=f"{self.prefix}{i}")
      return x if x.shape[-1] == c else conv(x)

    return tuple(project(i, x, c) for i, (x, c) in enumerate(zip(features, self.channels, strict=True)))


class Linear(nn.Module):
  """Linear layer from the student's embedding to the teacher's width."""

  width: int

  @nn.compact
  def __call__(self, embedding: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[b, width]."""
    del axis_name
    return basic.linear(self.width, embedding.shape[-1], name="linear")(embedding)


def init(module: nn.Module, key: jax.Array, *inputs: Any) -> MethodVariables:
  """Fresh parameters of a module, and its running statistics as state.

  Args:
    module: called as `module(*inputs, axis_name)`.
    key: random key.
    *inputs: its inputs or their shapes, batch first. Only shapes are read, of a batch of one. Everything is made in
      the inputs' type, float32 at least, although Flax creates parameters in float32: a float64 run has one type.
  """

  def one(x):
    return jnp.zeros((1, *x.shape[1:]), x.dtype)

  examples = jax.tree.map(one, inputs)
  variables = _init(module, key, *examples)
  wide = jnp.promote_types(jnp.result_type(*jax.tree.leaves(examples)), jnp.float32)
  variables = jax.tree.map(lambda x: x.astype(wide), variables)
  return MethodVariables(params=variables.get("params", {}), state=variables.get("batch_stats", {}))


@functools.partial(jax.jit, static_argnums=0)
def _init(module: nn.Module, key: jax.Array, *examples: Any) -> Any:
  """Compiled as a whole, because layer by layer takes seconds."""
  return module.init(key, *examples, None)


def apply(
  module: nn.Module, params: Any, state: Any, *inputs: Any, axis_name: str | None = None
) -> tuple[Any, Any]:
  """(output, new state) of a module from `init`. Batch norm is by the global batch."""
  variables = {"params": params, "batch_stats": state}
  output, updated = module.apply(variables, *inputs, axis_name, mutable="batch_stats")
  return output, updated.get("batch_stats", {})
