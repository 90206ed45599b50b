"""Views of which an image has finitely many: each has a number, so that what a frozen network says of it can be kept.

A crop of the image padded by p, mirrored or not, is one of (2p + 1)^2 times 2: 162 for p = 4. Pure.

With all of them the numbers are those of `augment.draw`'s draws. With fewer, V of N, the views of an image are

  (first + v stride) mod N,  v = 0, ..., V - 1,

spread over all, `first` being drawn for each image once and for all, and the stride having no divisor in common with N,
so that no view comes twice. That is an approximation of the usual augmentation, which sees all in the end.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.data import augment

OFFSET_SEED = 0x5EED  # the key of what is drawn for each image once and for all


class EnumerableView(NamedTuple):
  """The views of each image, numbered from 0."""

  num_views: int
  sample_index: Callable[
    [jax.Array, jax.Array], jax.Array
  ]  # (key, index [b]) -> the number of the view drawn, [b], int32
  render: Callable[
    [jax.Array, jax.Array, jax.Array], jax.Array
  ]  # (image, index, number [b]) -> [b, h, w, c], uint8


def plain() -> EnumerableView:
  """The image as it is: one view."""
  return EnumerableView(1, lambda key, index: jnp.zeros_like(index), lambda image, index, number: image)


def crop_flip(*, padding: int = 4, flip: bool = True, num_views: int = 0) -> EnumerableView:
  """Crops of the padded image, mirrored or not.

  Args:
    padding: pixels of zeros on each side.
    flip: whether images are mirrored too.
    views: how many of them an image is seen in; 0 for all.

  Raises:
    ValueError: there are not so many.
  """
  side, mirrored = 2 * padding + 1, 1 + flip
  count = side * side * mirrored
  if not 0 <= num_views <= count:
    raise ValueError(f"crop_flip.views: {num_views}; a padding of {padding} gives {count}, and 0 means all")

  def of_all(key, index):
    corner, flipped = augment.sample_crop_flip(key, index, padding)
    number = corner[:, 0] * side + corner[:, 1]
    return number * 2 + flipped if flip else number

  def of_some(key, index):
    return jnp.floor(augment.uniform_per_example(key, index, 1)[:, 0] * num_views).astype(jnp.int32)

  def show(image, index, number):
    if 0 < num_views < count:
      first = jnp.floor(
        augment.uniform_per_example(jax.random.key(OFFSET_SEED), index, 1)[:, 0] * count
      ).astype(jnp.int32)
      number = (first + number * _coprime_stride(count, num_views)) % count
    place, flipped = jnp.divmod(number, mirrored)
    corner = jnp.stack(jnp.divmod(place, side), axis=-1)
    return augment.apply_crop_flip(image, corner, flipped.astype(bool), padding=padding, flip=flip)

  return EnumerableView(num_views or count, of_some if 0 < num_views < count else of_all, show)


# The views that there are finitely many of, by their names in data/views.py.
ENUMERABLE_VIEWS: dict[str, Callable[..., EnumerableView]] = {"plain": plain, "crop_flip": crop_flip}


def _coprime_stride(total: int, num_views: int) -> int:
  """The least number of at least count / views without a divisor in common with count."""
  return next(s for s in range(-(-total // num_views), 2 * total + 1) if math.gcd(s, total) == 1)
