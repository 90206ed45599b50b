"""Views that hide a part of each image. Pure.

b batch, h w c image. Each takes (key, image [b, h, w, c], index [b]) and returns the image, all uint8. What an example
loses depends on the key and on its own index alone.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from smskd_jax.data.augment import RNG_SALT, constant_color, uniform_per_example

MAX_ATTEMPTS = 10  # of random erasing to find a rectangle that fits; each of them does in 19 of 20 cases


def cutout(
  key: jax.Array, image: jax.Array, index: jax.Array, *, size: int = 16, fill: int | Sequence[int] = 128
) -> jax.Array:
  """One colour in a square, whose middle is any pixel: it may lie partly outside the image.

  DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
  https://arxiv.org/abs/1708.04552. There it is filled with zeros after normalization, which is the data's mean.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, positions in the training set.
    size: the square's side; the paper has 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.
    fill: a level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.
  """
  if size < 1:
    raise ValueError(f"cutout: size must be at least 1, got {size!r}")
  middle = jnp.floor(uniform_per_example(key, index, 2) * _height_width(image))
  first = middle - size // 2
  return jnp.where(rectangle_mask(first, first + size, image), constant_color(fill), image)


def random_erasing(
  key: jax.Array,
  image: jax.Array,
  index: jax.Array,
  *,
  probability: float = 0.5,
  min_area: float = 0.02,
  max_area: float = 0.4,
  min_aspect: float = 0.3,
  fill: int | Sequence[int] | str = "random",
) -> jax.Array:
  """A rectangle of random area and shape, somewhere inside the image, of random levels or of one colour.

  Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, https://arxiv.org/abs/1708.04896. As there, the ratio of
  height to width is uniform. A rectangle that does not fit is drawn again; an image keeps all after ten that do not.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, positions in the training set.
    probability: of an image to lose anything.
    min_area: the smallest part of the image.
    max_area: the largest.
    min_aspect: the smallest ratio of height to width; the largest is 1 / min_aspect.
    fill: "random" for a level for each pixel and channel; a level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.
  """
  if not 0 <= probability <= 1:
    raise ValueError(f"random_erasing: probability must be a number from 0 to 1, got {probability!r}")
  if not 0 < min_area <= max_area <= 1:
    raise ValueError(
      f"random_erasing: 0 < min_area <= max_area <= 1 is needed, got {min_area!r}, {max_area!r}"
    )
  if not 0 < min_aspect <= 1:
    raise ValueError(f"random_erasing: min_aspect must be above 0 and at most 1, got {min_aspect!r}")
  drawn = uniform_per_example(key, index, 3 + 2 * MAX_ATTEMPTS)
  height, width = _sample_rectangle_size(
    drawn[:, 3:], image, (min_area, max_area), (min_aspect, 1 / min_aspect)
  )
  size = jnp.where(drawn[:, :1] < probability, jnp.stack([height, width], axis=1), 0.0)
  first = jnp.floor(drawn[:, 1:3] * (_height_width(image) + 1 - size))
  return jnp.where(rectangle_mask(first, first + size, image), _fill_values(key, image, index, fill), image)


def random_square(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """One colour in a square of up to half the image's width: the last part of the view `fixmatch`, as in its code.

  The square is cut off at the left and at the top without becoming smaller, and has its last row and column.
  """
  w, c = image.shape[2:]
  drawn = uniform_per_example(key, index, 3)
  side = 0.5 * w * drawn[:, :1]
  first = jnp.floor(jnp.maximum(drawn[:, 1:] * _height_width(image) - side / 2, 0))
  last = jnp.where(side > 0, jnp.floor(first + side) + 1, first)
  return jnp.where(
    rectangle_mask(first, last, image), constant_color((125, 123, 114) if c == 3 else 123), image
  )


def rectangle_mask(start: jax.Array, stop: jax.Array, image: jax.Array) -> jax.Array:
  """Where rectangles are: of first (row, column) [b, 2] and the ones after their last, to [b, h, w, 1], bool."""
  rows, columns = (jnp.arange(n, dtype=start.dtype)[None] for n in image.shape[1:3])
  within = lambda place, axis: (place >= start[:, axis, None]) & (place < stop[:, axis, None])
  return within(rows, 0)[:, :, None, None] & within(columns, 1)[:, None, :, None]


def _sample_rectangle_size(uniforms, image, areas, aspects):
  """Height and width, [b], whole numbers, of the first attempt that fits; 0 where none does. drawn: [b, 2 attempts]."""
  h, w = image.shape[1:3]
  between = lambda ends, x: ends[0] + (ends[1] - ends[0]) * x
  area = between(areas, uniforms[:, ::2]) * h * w
  aspect = between(aspects, uniforms[:, 1::2])
  height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
  fits = (height < h) & (width < w)
  first = jnp.argmax(fits, axis=1, keepdims=True)
  of_first = lambda size: jnp.take_along_axis(jnp.where(fits, size, 0.0), first, axis=1)[:, 0]
  return of_first(height), of_first(width)


def _fill_values(key, image, index, fill):
  if fill != "random":
    return constant_color(fill)
  # Not the numbers that have placed the rectangle. Four levels of each number of 32 bits.
  key, shape = jax.random.fold_in(key, RNG_SALT), image.shape[1:]
  count = -(-math.prod(shape) // 4)
  bits = jax.vmap(lambda position: jax.random.bits(jax.random.fold_in(key, position), (count,)))(index)
  levels = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(len(index), -1)
  return levels[:, : math.prod(shape)].reshape(image.shape)


def _height_width(image):
  """Height and width, [1, 2], float32."""
  return jnp.array([image.shape[1:3]], jnp.float32)
