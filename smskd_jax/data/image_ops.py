"""Image operations of AutoAugment and its successors.

Each image of a batch gets its own operation. Pure.

Shapes: b batch, h height, w width, c channels, 1 or 3. Images are uint8.

  operation                                magnitude
  identity                                 none
  shear_x, shear_y                         offset in pixels per row or column, nearest neighbour
  cubic_shear_x, cubic_shear_y             offset in pixels per row or column, cubic interpolation
  translate_x, translate_y                 pixels, nearest neighbour
  rotate                                   degrees counterclockwise, nearest neighbour
  posterize                                bits to keep, 1 to 8
  solarize                                 grey level from which on levels are inverted
  autocontrast, equalize, invert           none
  color, contrast, brightness, sharpness   enhancement factor; 1 leaves the image unchanged

Shears and translations are offsets of the pixel that is read. Nearest-neighbour operations read the same pixels as
Pillow's; all others equal Pillow's to one grey level.

Operations of one kind (geometric, lookup table, enhancement) share one pass over the batch, so that a whole policy
costs little more than one operation.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from types import MappingProxyType

import chex
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data.augment import constant_color

Fill = int | Sequence[int]  # a grey level, or one for each channel
OpMasks = Mapping[str, jax.Array]  # by operation: the images that get it, [b], bool

FIXED_POINT_ONE = 1 << 16  # one pixel; Pillow computes coordinates in these units
FIXED_POINT_HALF = FIXED_POINT_ONE // 2
GREY_LEVELS = np.arange(256, dtype=np.int32)[None, None]  # [1, 1, 256]


# Affine maps: (magnitude [b], h, w) -> coefficients [b, 6], int32, in fixed point.


def shear_x(magnitude: jax.Array, h: int, w: int) -> jax.Array:
  """Reads each row `magnitude` pixels further right than the row above.

  The upper left corner stays.
  """
  del h, w
  return _affine(
    magnitude, x_by_y=_to_fixed_point(magnitude), x=FIXED_POINT_HALF + _to_fixed_point(magnitude / 2)
  )


def shear_y(magnitude: jax.Array, h: int, w: int) -> jax.Array:
  """Reads each column `magnitude` pixels further down than the column on its left.

  The upper left corner stays.
  """
  del h, w
  return _affine(
    magnitude, y_by_x=_to_fixed_point(magnitude), y=FIXED_POINT_HALF + _to_fixed_point(magnitude / 2)
  )


def translate_x(pixels: jax.Array, h: int, w: int) -> jax.Array:
  """Reads each pixel from `pixels` further right."""
  del h, w
  return _affine(pixels, x=FIXED_POINT_HALF + _to_fixed_point(pixels))


def translate_y(pixels: jax.Array, h: int, w: int) -> jax.Array:
  """Reads each pixel from `pixels` further below."""
  del h, w
  return _affine(pixels, y=FIXED_POINT_HALF + _to_fixed_point(pixels))


def rotate(degrees: jax.Array, h: int, w: int) -> jax.Array:
  """Rotates counterclockwise about the centre of the image."""
  angle = jnp.radians(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  right, down = (w - 1) / 2, (h - 1) / 2  # from the middle of the first pixel to the centre of the image
  return _affine(
    degrees,
    x_by_x=_to_fixed_point(cos),
    x_by_y=_to_fixed_point(-sin),
    x=_to_fixed_point(w / 2 - right * cos + down * sin),
    y_by_x=_to_fixed_point(sin),
    y_by_y=_to_fixed_point(cos),
    y=_to_fixed_point(h / 2 - right * sin - down * cos),
  )


AFFINE_OPS: Mapping[str, Callable[[jax.Array, int, int], jax.Array]] = MappingProxyType(
  {op.__name__: op for op in (shear_x, shear_y, translate_x, translate_y, rotate)}
)


def _affine(
  like,
  x_by_x=FIXED_POINT_ONE,
  x_by_y=0,
  x=FIXED_POINT_HALF,
  y_by_x=0,
  y_by_y=FIXED_POINT_ONE,
  y=FIXED_POINT_HALF,
):
  """Coefficients [b, 6] of an affine map.

  (x, y) is the source of the middle of the first pixel.
  """
  coefficients = (x_by_x, x_by_y, x, y_by_x, y_by_y, y)
  return jnp.stack([jnp.broadcast_to(jnp.int32(entry), like.shape) for entry in coefficients], axis=1)


def _to_fixed_point(pixels):
  return jnp.floor(pixels * FIXED_POINT_ONE + 0.5).astype(jnp.int32)


def warp_nearest(image: jax.Array, affine: jax.Array, fill: Fill) -> jax.Array:
  """Reads each pixel of the result at its source coordinates.

  Args:
    image: [b, h, w, c], uint8.
    affine: [b, 6], int32, in fixed point: the source coordinates of the result's pixels.
    fill: colour of pixels whose source lies outside the image: a grey level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.
  """
  b, h, w, c = image.shape
  row, column = jnp.arange(h, dtype=jnp.int32)[None, :, None], jnp.arange(w, dtype=jnp.int32)[None, None]
  x_by_x, x_by_y, x, y_by_x, y_by_y, y = (entry[:, None, None] for entry in affine.T)
  source_x = (x + x_by_x * column + x_by_y * row) >> 16
  source_y = (y + y_by_x * column + y_by_y * row) >> 16
  inside = (source_x >= 0) & (source_x < w) & (source_y >= 0) & (source_y < h)
  first = h * w * jnp.arange(b, dtype=jnp.int32)[:, None, None]
  flat_index = jnp.where(inside, first + source_y * w + source_x, 0)
  pixel = jnp.take(image.reshape(b * h * w, c), flat_index, axis=0, mode="clip")
  return jnp.where(inside[..., None], pixel, constant_color(fill))


# Cubic operations: (image [b, h, w, c], magnitude [b], fill) -> image [b, h, w, c], uint8.


def cubic_shear_x(image: jax.Array, magnitude: jax.Array, fill: Fill) -> jax.Array:
  """`shear_x` with cubic interpolation along the rows."""
  return cubic_shear_y(image.swapaxes(1, 2), magnitude, fill).swapaxes(1, 2)


def cubic_shear_y(image: jax.Array, magnitude: jax.Array, fill: Fill) -> jax.Array:
  """`shear_y` with cubic interpolation along the columns.

  The kernel is Pillow's (a = -1), in single precision.
  """
  b, h, w, c = image.shape
  row, column = jnp.arange(h, dtype=jnp.float32)[None, :, None], jnp.arange(w, dtype=jnp.float32)[None, None]
  source = row + magnitude.astype(jnp.float32)[:, None, None] * (column + 0.5)
  above = jnp.floor(source)
  d = (source - above)[..., None]
  flat = image.reshape(b * h * w, c)
  first = h * w * jnp.arange(b, dtype=jnp.int32)[:, None, None] + jnp.arange(w, dtype=jnp.int32)[None, None]

  def read_row(offset):
    clipped = jnp.clip(above.astype(jnp.int32) + offset, 0, h - 1)
    return jnp.take(flat, first + clipped * w, axis=0, mode="clip").astype(jnp.float32)

  v1, v2, v3, v4 = map(read_row, (-1, 0, 1, 2))
  mixed = v2 + d * (v3 - v1 + d * (2 * (v1 - v2) + v3 - v4 + d * (v2 - v1 + v4 - v3)))
  inside = (source >= -0.5) & (source < h - 0.5)
  return jnp.where(inside[..., None], jnp.clip(mixed, 0, 255).astype(jnp.uint8), constant_color(fill))


CUBIC_OPS: Mapping[str, Callable[[jax.Array, jax.Array, Fill], jax.Array]] = MappingProxyType(
  {op.__name__: op for op in (cubic_shear_x, cubic_shear_y)}
)


# Lookup tables: (image [b, h, w, c], magnitude [b]) -> table [b or 1, c or 1, 256], int32.


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
  """Keeps the highest `bits` bits, 1 to 8, of each level; a fraction of a bit is dropped."""
  del image
  return jnp.bitwise_and(GREY_LEVELS, -(1 << (8 - bits.astype(jnp.int32)))[:, None, None])


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
  """Inverts the levels from the threshold on."""
  del image
  return jnp.where(threshold[:, None, None] > np.float32(GREY_LEVELS), GREY_LEVELS, 255 - GREY_LEVELS)


def autocontrast(image: jax.Array, magnitude: jax.Array) -> jax.Array:
  """Stretches each channel, so that its darkest level becomes 0 and its lightest 255."""
  del magnitude
  low, high = (reduce(image, axis=(1, 2)).astype(jnp.float32)[..., None] for reduce in (jnp.min, jnp.max))
  stretched = jnp.clip(255 * (np.float32(GREY_LEVELS) - low) / jnp.maximum(high - low, 1), 0, 255)
  return jnp.where(high > low, stretched.astype(jnp.int32), GREY_LEVELS)


def equalize(image: jax.Array, magnitude: jax.Array) -> jax.Array:
  """Makes all levels of a channel about equally frequent."""
  del magnitude
  count = histogram(image)
  lightest = jnp.max(image, axis=(1, 2)).astype(jnp.int32)[..., None]
  num_darker = image.shape[1] * image.shape[2] - jnp.take_along_axis(count, lightest, axis=-1)
  step = num_darker // 255
  below = jnp.cumsum(count, axis=-1) - count
  # Division in floats: CPUs have no vector instruction for that of integers.
  equalized = (below + (step >> 1)).astype(jnp.float32) / jnp.maximum(step, 1).astype(jnp.float32)
  return jnp.where(step > 0, jnp.minimum(equalized, 255).astype(jnp.int32), GREY_LEVELS)


def invert(image: jax.Array, magnitude: jax.Array) -> jax.Array:
  """Replaces each level by 255 minus the level."""
  del image, magnitude
  return jnp.asarray(255 - GREY_LEVELS)


LUT_OPS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = MappingProxyType(
  {op.__name__: op for op in (posterize, solarize, autocontrast, equalize, invert)}
)


def apply_lut(image: jax.Array, lut: jax.Array) -> jax.Array:
  """Replaces each level by its entry in a lookup table.

  Args:
    image: [b, h, w, c], uint8.
    lut: [b, c, 256], integers from 0 to 255.

  Returns:
    [b, h, w, c], uint8.
  """
  first = 256 * jnp.arange(lut.shape[0] * lut.shape[1], dtype=jnp.int32)
  flat_index = image.astype(jnp.int32) + first.reshape(lut.shape[0], 1, 1, lut.shape[1])
  return jnp.take(lut.astype(jnp.uint8).reshape(-1), flat_index, mode="clip")


def histogram(image: jax.Array) -> jax.Array:
  """Counts the levels of each channel: [b, h, w, c], uint8, to [b, c, 256], int32."""
  b, _, _, c = image.shape
  channel = jnp.arange(b * c, dtype=jnp.int32).reshape(b, 1, 1, c)
  # A scatter: on a CPU measured 6 times faster than a sort, 20 times faster than products of one-hot codes.
  count = jnp.zeros(b * c * 256, jnp.int32).at[256 * channel + image.astype(jnp.int32)]
  return count.add(1, mode="promise_in_bounds").reshape(b, c, 256)


# Enhancements: image [b, h, w, c], uint8 -> degenerate image, int32, broadcastable to [b, h, w, c]. Whole numbers,
# because a CPU has no vector instructions for sums of floats in a fixed order.


def color(image: jax.Array) -> jax.Array:
  """Grey image, by the luma weights of ITU-R 601-2 in 16 bits.

  Images of one channel are grey already.
  """
  chex.assert_axis_dimension_comparator(image, -1, lambda c: c in (1, 3), "1 or 3 channels")
  if image.shape[-1] == 1:
    return image.astype(jnp.int32)
  weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471], jnp.int32)[None, None, None]
  return (jnp.sum(weighted, axis=-1, keepdims=True) + 0x8000) >> 16


def contrast(image: jax.Array) -> jax.Array:
  """Rounded mean of the grey image."""
  grey = color(image)
  count = grey.shape[1] * grey.shape[2]
  return (2 * jnp.sum(grey, axis=(1, 2), keepdims=True) + count) // (2 * count)


def brightness(image: jax.Array) -> jax.Array:
  """Black image."""
  return jnp.zeros((image.shape[0], 1, 1, 1), jnp.int32)


def sharpness(image: jax.Array) -> jax.Array:
  """Smoothed image: the mean of 3x3 pixels, the middle one with weight 5.

  Border pixels keep their levels.
  """
  level = image.astype(jnp.int32)
  three = level[:, :-2] + level[:, 1:-1] + level[:, 2:]
  nine = three[:, :, :-2] + three[:, :, 1:-1] + three[:, :, 2:]
  smooth = jax.lax.div(2 * (nine + 4 * level[:, 1:-1, 1:-1]) + 13, jnp.int32(26))
  return jax.lax.dynamic_update_slice(level, smooth, (0, 1, 1, 0))


ENHANCE_OPS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
  {op.__name__: op for op in (color, contrast, brightness, sharpness)}
)


OP_NAMES: tuple[str, ...] = ("identity", *AFFINE_OPS, *CUBIC_OPS, *LUT_OPS, *ENHANCE_OPS)


def apply_ops(
  image: jax.Array, op_index: jax.Array, magnitude: jax.Array, *, op_names: Sequence[str], fill: Fill = 0
) -> jax.Array:
  """Applies to each image the operation that is selected for the image.

  Args:
    image: [b, h, w, c], uint8, of 1 or 3 channels.
    op_index: [b], integers: indices into `op_names`.
    magnitude: [b], floats, each in the unit of its operation.
    op_names: names of `OP_NAMES` to select from. Kinds of operations that are not named cost nothing.
    fill: colour of pixels that a geometric operation reads outside the image: a grey level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: an unknown name.
  """
  chex.assert_rank([image, op_index, magnitude], [4, 1, 1])
  chex.assert_equal_shape_prefix([image, op_index, magnitude], 1)
  if unknown := set(op_names) - set(OP_NAMES):
    raise ValueError(f"unknown operations {sorted(unknown)}; known: {', '.join(OP_NAMES)}")
  magnitude = magnitude.astype(jnp.float32)
  masks = {name: op_index == i for i, name in enumerate(op_names)}
  image = _apply_affine(image, _select_group(AFFINE_OPS, masks), magnitude, fill)
  image = _apply_cubic(image, _select_group(CUBIC_OPS, masks), magnitude, fill)
  image = _apply_luts(image, _select_group(LUT_OPS, masks), magnitude)
  return _apply_enhance(image, _select_group(ENHANCE_OPS, masks), magnitude)


def _select_group(group: Mapping[str, Callable], masks: OpMasks) -> OpMasks:
  return {name: mask for name, mask in masks.items() if name in group}


def _apply_affine(image: jax.Array, masks: OpMasks, magnitude: jax.Array, fill: Fill) -> jax.Array:
  if not masks:
    return image
  h, w = image.shape[1:3]
  affine = _affine(magnitude)
  for name, mask in masks.items():
    affine = jnp.where(mask[:, None], AFFINE_OPS[name](magnitude, h, w), affine)
  return _fusion_barrier(_any_selected(masks), lambda x: warp_nearest(x, affine, fill), image)


def _apply_cubic(image: jax.Array, masks: OpMasks, magnitude: jax.Array, fill: Fill) -> jax.Array:
  for name, mask in masks.items():
    image = _fusion_barrier(mask, functools.partial(_apply_one_cubic, name, mask, magnitude, fill), image)
  return image


def _apply_one_cubic(
  name: str, mask: jax.Array, magnitude: jax.Array, fill: Fill, image: jax.Array
) -> jax.Array:
  return jnp.where(mask[:, None, None, None], CUBIC_OPS[name](image, magnitude, fill), image)


def _apply_luts(image: jax.Array, masks: OpMasks, magnitude: jax.Array) -> jax.Array:
  if not masks:
    return image
  lut = jnp.broadcast_to(GREY_LEVELS, (image.shape[0], image.shape[-1], 256))
  for name, mask in masks.items():

    def replace_selected(lut, name=name, mask=mask):
      return jnp.where(mask[:, None, None], LUT_OPS[name](image, magnitude), lut)

    lut = _fusion_barrier(mask, replace_selected, lut)
  return _fusion_barrier(_any_selected(masks), lambda x: apply_lut(x, lut), image)


def _apply_enhance(image: jax.Array, masks: OpMasks, magnitude: jax.Array) -> jax.Array:
  """Blends images with degenerates.

  A factor of 0 gives the degenerate, 1 the image, above 1 an extrapolation.
  """
  if not masks:
    return image

  def blend(image):
    degenerate, factor = jnp.zeros((1, 1, 1, 1), jnp.int32), jnp.ones_like(magnitude)
    for name, mask in masks.items():
      degenerate = jnp.where(mask[:, None, None, None], ENHANCE_OPS[name](image), degenerate)
      factor = jnp.where(mask, magnitude, factor)
    difference = (degenerate - image.astype(jnp.int32)).astype(jnp.float32)
    mixed = image.astype(jnp.float32) + (1 - factor)[:, None, None, None] * difference
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)

  return _fusion_barrier(_any_selected(masks), blend, image)


def _any_selected(masks: OpMasks) -> jax.Array:
  """Images for which any of the operations is selected, [b], bool."""
  return functools.reduce(jnp.logical_or, masks.values())


def _fusion_barrier(mask: jax.Array, fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """fn(x) as a separate computation, skipped on a CPU where no image is in the mask.

  Then fn(x) must equal x.

  Without the barrier, XLA on a CPU fuses `fn` with the readers of its result and recomputes `fn` for every pixel that
  is
  read: measured 5 times slower. There is no fusion across a condition. Accelerators get an optimization barrier,
  because they would have to wait for the condition.
  """
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: jax.lax.cond(jnp.any(mask), fn, lambda x: x, x),
    default=lambda x: jax.lax.optimization_barrier(fn(x)),
  )
