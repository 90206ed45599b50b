"""Operations that mix an image with a degenerate of itself, by a factor per image. Pure.

b batch, h w c image, c 1 or 3. A factor of 0 gives the degenerate, 1 the image; above 1 is away from the degenerate.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import chex
import jax
import jax.numpy as jnp


def color(image: jax.Array) -> jax.Array:
  """Grey, by the luma weights of ITU-R 601-2 in 16 bits. An image of one channel is grey already."""
  chex.assert_axis_dimension_comparator(image, -1, lambda c: c in (1, 3), "1 or 3 channels")
  if image.shape[-1] == 1:
    return image.astype(jnp.int32)
  weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471], jnp.int32)[None, None, None]
  return (jnp.sum(weighted, axis=-1, keepdims=True) + 0x8000) >> 16


def contrast(image: jax.Array) -> jax.Array:
  """The rounded mean of the grey image."""
  grey = color(image)
  count = grey.shape[1] * grey.shape[2]
  return (2 * jnp.sum(grey, axis=(1, 2), keepdims=True) + count) // (2 * count)


def brightness(image: jax.Array) -> jax.Array:
  """Black."""
  return jnp.zeros((image.shape[0], 1, 1, 1), jnp.int32)


def sharpness(image: jax.Array) -> jax.Array:
  """Smoothed: the mean of nine pixels, the middle one five times. Pixels on the border stay as they are."""
  level = image.astype(jnp.int32)
  three = level[:, :-2] + level[:, 1:-1] + level[:, 2:]
  nine = three[:, :, :-2] + three[:, :, 1:-1] + three[:, :, 2:]
  smooth = jax.lax.div(2 * (nine + 4 * level[:, 1:-1, 1:-1]) + 13, jnp.int32(26))
  return jax.lax.dynamic_update_slice(level, smooth, (0, 1, 1, 0))


# Each takes [b, h, w, c], uint8, and returns the degenerate, which broadcasts to it, int32.
ENHANCE_OPS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
  {f.__name__: f for f in (color, contrast, brightness, sharpness)}
)


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
  """degenerate + factor (image - degenerate), cut off to 0..255 and to whole numbers.

  As in Pillow, the product is rounded to single precision, then the sum. Products of integers do it, because a
  compiler may fuse a product of floats with the sum and round once, which shows where the sum is a whole number.

  Args:
    degenerate: integers from 0 to 255, of the image's rank; its axes of size 1 are broadcast.
    image: [b, h, w, c], uint8.
    factor: [b], 0 <= factor < 256.

  Returns:
    [b, h, w, c], uint8.
  """
  mantissa, exponent = jnp.frexp(factor.astype(jnp.float32)[:, None, None, None])
  digits = (mantissa * 2**24).astype(jnp.uint32)
  unit = jnp.ldexp(jnp.ones_like(mantissa), exponent - 24)
  difference = image.astype(jnp.int32) - degenerate
  size = (digits * jnp.abs(difference).astype(jnp.uint32)).astype(jnp.float32) * unit
  mixed = degenerate.astype(jnp.float32) + jnp.where(difference < 0, -size, size)
  return jnp.clip(mixed, 0, 255).astype(jnp.uint8)
