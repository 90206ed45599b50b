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

FIRST = 0x5EED  # the key of what is drawn for each image once and for all


class Finite(NamedTuple):
  """The views of each image, numbered from 0."""

  total: int
  number: Callable[
    [jax.Array, jax.Array], jax.Array
  ]  # (key, index [b]) -> the number of the view drawn, [b], int32
  show: Callable[
    [jax.Array, jax.Array, jax.Array], jax.Array
  ]  # (image, index, number [b]) -> [b, h, w, c], uint8


def plain() -> Finite:
  """The image as it is: one view."""
  return Finite(1, lambda key, index: jnp.zeros_like(index), lambda image, index, number: image)


def crop_flip(*, padding: int = 4, flip: bool = True, views: int = 0) -> Finite:
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
  if not 0 <= views <= count:
    raise ValueError(f"crop_flip.views: {views}; a padding of {padding} gives {count}, and 0 means all")

  def of_all(key, index):
    corner, flipped = augment.draw(key, index, padding)
    number = corner[:, 0] * side + corner[:, 1]
    return number * 2 + flipped if flip else number

  def of_some(key, index):
    return jnp.floor(augment.uniform(key, index, 1)[:, 0] * views).astype(jnp.int32)

  def show(image, index, number):
    if 0 < views < count:
      first = jnp.floor(augment.uniform(jax.random.key(FIRST), index, 1)[:, 0] * count).astype(jnp.int32)
      number = (first + number * _stride(count, views)) % count
    place, flipped = jnp.divmod(number, mirrored)
    corner = jnp.stack(jnp.divmod(place, side), axis=-1)
    return augment.crop(image, corner, flipped.astype(bool), padding=padding, flip=flip)

  return Finite(views or count, of_some if 0 < views < count else of_all, show)


# The views that there are finitely many of, by their names in data/views.py.
FINITE: dict[str, Callable[..., Finite]] = {"plain": plain, "crop_flip": crop_flip}


def _stride(count: int, views: int) -> int:
  """The least number of at least count / views without a divisor in common with count."""
  return next(s for s in range(-(-count // views), 2 * count + 1) if math.gcd(s, count) == 1)
