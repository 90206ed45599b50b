"""Operations that move pixels: an affine map per image. Pure.

b batch, h w c image. A map gives, for each pixel of the result, the place in the image to take it from. Maps are in
whole numbers of 1/65536 of a pixel, as in Pillow, so that both take the same pixel where a place is on the border
of two.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp

from smskd_jax.data.augment import constant_color

Fill = int | Sequence[int]  # a level, or one for each channel
FIXED_POINT_ONE = 1 << 16  # a pixel
FIXED_POINT_HALF = FIXED_POINT_ONE // 2


def shear_x(magnitude: jax.Array, h: int, w: int) -> jax.Array:
  """Each row is taken from `magnitude` further right than the one above it; the upper left corner stays."""
  del h, w
  return _make_affine(
    magnitude, x_by_y=_to_fixed_point(magnitude), x=FIXED_POINT_HALF + _to_fixed_point(magnitude / 2)
  )


def shear_y(magnitude: jax.Array, h: int, w: int) -> jax.Array:
  """Each column is taken from `magnitude` further below than the one on its left; the upper left corner stays."""
  del h, w
  return _make_affine(
    magnitude, y_by_x=_to_fixed_point(magnitude), y=FIXED_POINT_HALF + _to_fixed_point(magnitude / 2)
  )


def translate_x(pixels: jax.Array, h: int, w: int) -> jax.Array:
  """Each pixel is taken from `pixels` further right."""
  del h, w
  return _make_affine(pixels, x=FIXED_POINT_HALF + _to_fixed_point(pixels))


def translate_y(pixels: jax.Array, h: int, w: int) -> jax.Array:
  """Each pixel is taken from `pixels` further below."""
  del h, w
  return _make_affine(pixels, y=FIXED_POINT_HALF + _to_fixed_point(pixels))


def rotate(degrees: jax.Array, h: int, w: int) -> jax.Array:
  """Turns the image counterclockwise about its centre."""
  angle = jnp.radians(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  right, down = (w - 1) / 2, (h - 1) / 2  # from the middle of the first pixel to the image's centre
  return _make_affine(
    degrees,
    x_by_x=_to_fixed_point(cos),
    x_by_y=_to_fixed_point(-sin),
    x=_to_fixed_point(w / 2 - right * cos + down * sin),
    y_by_x=_to_fixed_point(sin),
    y_by_y=_to_fixed_point(cos),
    y=_to_fixed_point(h / 2 - right * sin - down * cos),
  )


# Each takes (magnitude [b], h, w) and returns the map, [b, 6], int32.
AFFINE_OPS: Mapping[str, Callable[[jax.Array, int, int], jax.Array]] = MappingProxyType(
  {f.__name__: f for f in (shear_x, shear_y, translate_x, translate_y, rotate)}
)


def identity_affine(magnitude: jax.Array) -> jax.Array:
  """The map that moves nothing, [b, 6]."""
  return _make_affine(magnitude)


def warp_nearest(image: jax.Array, affine: jax.Array, fill: Fill) -> jax.Array:
  """Takes each pixel from the one that its place lies in.

  Args:
    image: [b, h, w, c], uint8.
    affine: [b, 6], int32.
    fill: the colour of what comes from outside the image: a level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.
  """
  b, h, w, c = image.shape
  x, y = (place >> 16 for place in _source_coordinates(affine, h, w))
  inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
  first = h * w * jnp.arange(b, dtype=jnp.int32)[:, None, None]
  pixel = jnp.take(image.reshape(b * h * w, c), jnp.where(inside, first + y * w + x, 0), axis=0, mode="clip")
  return jnp.where(inside[..., None], pixel, constant_color(fill))


def cubic_shear_x(image: jax.Array, magnitude: jax.Array, fill: Fill) -> jax.Array:
  """`shear_x` with cubic interpolation along the rows."""
  return cubic_shear_y(image.swapaxes(1, 2), magnitude, fill).swapaxes(1, 2)


def cubic_shear_y(image: jax.Array, magnitude: jax.Array, fill: Fill) -> jax.Array:
  """`shear_y` with cubic interpolation along the columns, of Pillow's kernel (a = -1), in single precision."""
  b, h, w, c = image.shape
  row, column = jnp.arange(h, dtype=jnp.float32)[None, :, None], jnp.arange(w, dtype=jnp.float32)[None, None]
  place = row + magnitude.astype(jnp.float32)[:, None, None] * (column + 0.5)
  above = jnp.floor(place)
  d = (place - above)[..., None]
  flat = image.reshape(b * h * w, c)
  first = h * w * jnp.arange(b, dtype=jnp.int32)[:, None, None] + jnp.arange(w, dtype=jnp.int32)[None, None]

  def tap(offset):
    level = jnp.clip(above.astype(jnp.int32) + offset, 0, h - 1)
    return jnp.take(flat, first + level * w, axis=0, mode="clip").astype(jnp.float32)

  v1, v2, v3, v4 = map(tap, (-1, 0, 1, 2))
  mixed = v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 + v4 - v3)))
  inside = (place >= -0.5) & (place < h - 0.5)
  return jnp.where(inside[..., None], jnp.clip(mixed, 0, 255).astype(jnp.uint8), constant_color(fill))


# Each takes (image [b, h, w, c], magnitude [b], fill) and returns the image, [b, h, w, c], uint8.
CUBIC_OPS: Mapping[str, Callable[[jax.Array, jax.Array, Fill], jax.Array]] = MappingProxyType(
  {f.__name__: f for f in (cubic_shear_x, cubic_shear_y)}
)


def _source_coordinates(affine, h, w):
  """Where each pixel of the result comes from, x and y: [b, h, w] each."""
  row, column = jnp.arange(h, dtype=jnp.int32)[None, :, None], jnp.arange(w, dtype=jnp.int32)[None, None]
  x_by_x, x_by_y, x, y_by_x, y_by_y, y = (entry[:, None, None] for entry in affine.T)
  return x + x_by_x * column + x_by_y * row, y + y_by_x * column + y_by_y * row


def _make_affine(
  like,
  x_by_x=FIXED_POINT_ONE,
  x_by_y=0,
  x=FIXED_POINT_HALF,
  y_by_x=0,
  y_by_y=FIXED_POINT_ONE,
  y=FIXED_POINT_HALF,
):
  """The map of its six entries; x and y are where the middle of the first pixel comes from."""
  entries = (x_by_x, x_by_y, x, y_by_x, y_by_y, y)
  return jnp.stack([jnp.broadcast_to(jnp.int32(entry), like.shape) for entry in entries], axis=1)


def _to_fixed_point(pixels):
  return jnp.floor(pixels * FIXED_POINT_ONE + 0.5).astype(jnp.int32)
