"""Blocks of networks of tokens: attention or an MLP over positions, then channels."""

import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def xavier(key, shape, dtype):
  """Uniform weights [in, out] of Glorot and Bengio, drawn flat as in `layers/basic.py`."""
  bound = math.sqrt(6 / sum(shape))
  return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


class MlpBlock(nn.Module):
  """Two linear layers around a GELU."""

  hidden: int
  dtype: Any
  kernel_init: Any = xavier

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Of the last axis of x; its size stays."""
    y = nn.gelu(
      nn.Dense(self.hidden, kernel_init=self.kernel_init, dtype=self.dtype, name="fc1")(x), approximate=False
    )
    return nn.Dense(x.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name="fc2")(y)


class Attention(nn.Module):
  """Scaled dot-product attention of several heads, among all tokens."""

  num_heads: int
  dtype: Any
  kernel_init: Any = xavier

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[b, n, d] of n tokens; the softmax is computed in float32 or wider."""
    b, n, d = x.shape
    qkv = nn.Dense(3 * d, kernel_init=self.kernel_init, dtype=self.dtype, name="qkv")(x)
    qkv = qkv.reshape(b, n, 3, self.num_heads, d // self.num_heads).transpose(2, 0, 3, 1, 4)
    q, k, v = (qkv[i] for i in range(3))
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(scores.astype(jnp.promote_types(x.dtype, jnp.float32)))
    y = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    y = y.transpose(0, 2, 1, 3).reshape(b, n, d)
    return nn.Dense(d, kernel_init=self.kernel_init, dtype=self.dtype, name="proj")(y)


class Block(nn.Module):
  """Mixes tokens by attention or, without heads, an MLP over positions; then channels."""

  num_heads: int | None  # None: an MLP over positions
  dtype: Any
  kernel_init: Any = xavier

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[b, n, d]."""

    def norm(name):
      return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name)

    channels = x.shape[-1]
    y = norm("norm1")(x)
    if self.num_heads is not None:
      x = x + Attention(self.num_heads, self.dtype, self.kernel_init, name="attn")(y)
      mlp = MlpBlock(4 * channels, self.dtype, self.kernel_init, name="mlp")
    else:
      mixed = MlpBlock(channels // 2, self.dtype, self.kernel_init, name="mlp__tokens")(y.swapaxes(1, 2))
      x = x + mixed.swapaxes(1, 2)
      mlp = MlpBlock(4 * channels, self.dtype, self.kernel_init, name="mlp__channels")
    return x + mlp(norm("norm2")(x))
