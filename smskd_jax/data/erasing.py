"""Views that hide a part of each image. Pure.

Shapes: b batch, h height, w width, c channels. Each view takes (key, image [b, h, w, c], index [b]) and returns the
image, all uint8. The hidden part of an example depends on the key and the example's index alone.
"""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp

from smskd_jax.data.augment import RNG_SALT, constant_color, uniform_per_example
from smskd_jax.errors import check_positive_integer, check_unit_interval

MAX_ATTEMPTS = 10  # of random erasing to find a rectangle that fits; one attempt succeeds in 19 of 20 cases


def cutout(
  key: jax.Array, image: jax.Array, index: jax.Array, *, size: int = 16, fill: int | Sequence[int] = 128
) -> jax.Array:
  """Fills a square centred at a random pixel with one colour.

  The square may lie partly outside the image.

  DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
  https://arxiv.org/abs/1708.04552. The paper fills with zeros after normalization, which is the mean of the data.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, indices in the training set.
    size: side of the square, pixels; the paper uses 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN.
    fill: a grey level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: `size` is not a positive integer.
  """
  check_positive_integer("cutout", size=size)
  center = jnp.floor(uniform_per_example(key, index, 2) * _height_width(image))
  start = center - size // 2
  return jnp.where(rectangle_mask(start, start + size, image), constant_color(fill), image)


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
  """Fills a rectangle of random area, shape and position with random levels or one colour.

  Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, https://arxiv.org/abs/1708.04896. As in the paper, the
  ratio of height to width is uniform. A rectangle that does not fit is drawn again, up to `MAX_ATTEMPTS` times; if none
  fits, the image stays unchanged.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, indices in the training set.
    probability: of erasing a rectangle.
    min_area: smallest area, as a fraction of the image.
    max_area: largest area, as a fraction of the image.
    min_aspect: smallest ratio of height to width; the largest is 1 / min_aspect.
    fill: "random" for a level for each pixel and channel; a grey level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: an option is out of range.
  """
  check_unit_interval("random_erasing", probability=probability)
  if not 0 < min_area <= max_area <= 1:
    raise ValueError(
      f"random_erasing: 0 < min_area <= max_area <= 1 is needed, got {min_area!r}, {max_area!r}"
    )
  if not 0 < min_aspect <= 1:
    raise ValueError(f"random_erasing: min_aspect must be above 0 and at most 1, got {min_aspect!r}")
  uniforms = uniform_per_example(key, index, 3 + 2 * MAX_ATTEMPTS)
  areas, aspects = (min_area, max_area), (min_aspect, 1 / min_aspect)
  size = _sample_rectangle_size(uniforms[:, 3:], image, areas, aspects)
  size = jnp.where(uniforms[:, :1] < probability, size, 0.0)
  start = jnp.floor(uniforms[:, 1:3] * (_height_width(image) + 1 - size))
  return jnp.where(rectangle_mask(start, start + size, image), _fill_values(key, image, index, fill), image)


def random_square(key: jax.Array, image: jax.Array, index: jax.Array) -> jax.Array:
  """Fills a square of up to half the image's width with one colour.

  It is the last part of the view `fixmatch`.

  As in the published code, the left and top borders of the image shift the square without shrinking it, and its last
  row and column are included.
  """
  w, c = image.shape[2:]
  uniforms = uniform_per_example(key, index, 3)
  side = 0.5 * w * uniforms[:, :1]
  start = jnp.floor(jnp.maximum(uniforms[:, 1:] * _height_width(image) - side / 2, 0))
  stop = jnp.where(side > 0, jnp.floor(start + side) + 1, start)
  color = constant_color((125, 123, 114) if c == 3 else 123)
  return jnp.where(rectangle_mask(start, stop, image), color, image)


def rectangle_mask(start: jax.Array, stop: jax.Array, image: jax.Array) -> jax.Array:
  """Mask of rectangles, [b, h, w, 1], bool.

  The arguments are first and one-past-last (row, column), [b, 2] each.
  """
  row, column = (jnp.arange(n, dtype=start.dtype)[None] for n in image.shape[1:3])
  rows = (row >= start[:, :1]) & (row < stop[:, :1])
  columns = (column >= start[:, 1:]) & (column < stop[:, 1:])
  return rows[:, :, None, None] & columns[:, None, :, None]


def _sample_rectangle_size(uniforms, image, areas, aspects):
  """(height, width), [b, 2], whole numbers, of the first attempt that fits, else 0.

  Uniforms: [b, 2 attempts].
  """
  h, w = image.shape[1:3]
  area = (areas[0] + (areas[1] - areas[0]) * uniforms[:, ::2]) * h * w
  aspect = aspects[0] + (aspects[1] - aspects[0]) * uniforms[:, 1::2]
  height, width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
  fits = (height < h) & (width < w)
  sizes = jnp.where(fits[..., None], jnp.stack([height, width], axis=-1), 0.0)
  first_fit = jnp.argmax(fits, axis=1)[:, None, None]
  return jnp.take_along_axis(sizes, first_fit, axis=1)[:, 0]


def _fill_values(key, image, index, fill):
  if fill != "random":
    return constant_color(fill)
  # A key of its own: the first numbers of `key` place the rectangle. Each 32-bit number gives four levels.
  key, shape = jax.random.fold_in(key, RNG_SALT), image.shape[1:]
  count = -(-math.prod(shape) // 4)
  bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (count,)))(index)
  levels = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(len(index), -1)
  return levels[:, : math.prod(shape)].reshape(image.shape)


def _height_width(image):
  """Height and width, [1, 2], float32."""
  return jnp.array([image.shape[1:3]], jnp.float32)
