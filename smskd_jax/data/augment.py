"""Views of a batch of images, made on the device inside the compiled step. Pure.

b batch, h w c image. Images stay uint8 until `normalize`.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

# Folded into a key, it gives one that no example draws from: an index is below 2**31.
RNG_SALT = 2**32 - 1


def uniform_per_example(key: jax.Array, index: jax.Array, count: int) -> jax.Array:
  """Numbers in [0, 1) for each example, of the key and its own index alone: [b] to [b, count]."""
  return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(key, position), (count,)))(index)


def constant_color(fill: int | Sequence[int]) -> jax.Array:
  """One colour, a level or one for each channel, as a uint8 image of one pixel: [1, 1, 1, 1 or c]."""
  return jnp.asarray(fill, jnp.uint8).reshape(1, 1, 1, -1)


def sample_crop_flip(key: jax.Array, index: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
  """Where to crop and whether to flip, for each example.

  An example's draw depends on the key and on its own index alone: it does not matter which device holds it,
  or beside which others.

  Args:
    key: [], a typed key that already holds the stage and the step.
    index: [b], integers, positions in the training set.
    padding: pixels of border on each side.

  Returns:
    The crop's upper left corner in the padded image, [b, 2], int32, each number in 0..2*padding; and whether
    to flip, [b], bool.
  """
  three = uniform_per_example(key, index, 3)
  corner = jnp.floor(three[:, :2] * (2 * padding + 1)).astype(jnp.int32)
  return corner, three[:, 2] < 0.5


def crop_flip(key: jax.Array, image: jax.Array, index: jax.Array, *, padding: int, flip: bool) -> jax.Array:
  """The usual view for CIFAR: a random crop of the zero-padded image, mirrored half the time.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, positions in the training set.
    padding: pixels of zeros on each side; 0 crops nothing.
    flip: whether to mirror left and right, with probability 1/2.

  Returns:
    [b, h, w, c], uint8.
  """
  chex.assert_rank([image, index], [4, 1])
  chex.assert_equal_shape_prefix([image, index], 1)
  return apply_crop_flip(image, *sample_crop_flip(key, index, padding), padding=padding, flip=flip)


def _check_padding(padding: int, shape: Sequence[int]) -> None:
  """Refuses a border that crops of images [..., h, w, c] could lie in as a whole.

  Raises:
    ValueError: it is negative or as wide as an image.
  """
  height, width = shape[-3:-1]
  if not 0 <= padding < min(height, width):
    most = min(height, width) - 1
    raise ValueError(
      f"crop_flip.padding: {padding} pixels around images of {height}x{width}; use 0 to {most}"
    )


def apply_crop_flip(
  image: jax.Array, corner: jax.Array, flipped: jax.Array, *, padding: int, flip: bool
) -> jax.Array:
  """What `draw` has drawn, done.

  Args:
    image: [b, h, w, c], uint8.
    corner: [b, 2], int32, in the padded image.
    flipped: [b], bool; without `flip` of no effect.
    padding: pixels of zeros on each side.
    flip: whether images may be mirrored.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: the padding does not suit the images.
  """
  _check_padding(padding, image.shape)
  if padding:
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    cut = lambda padded, at: jax.lax.dynamic_slice(padded, (at[0], at[1], 0), image.shape[1:])
    image = jax.vmap(cut)(jnp.pad(image, border), corner)
  if flip:
    image = jnp.where(flipped[:, None, None, None], image[:, :, ::-1], image)
  return image


def normalize(
  image: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
  """(image / 255 - mean) / std, computed in float32.

  Args:
    image: [b, h, w, c], uint8.
    mean: c numbers, where white is 1.
    std: c numbers.
    dtype: of the result.

  Returns:
    [b, h, w, c].
  """
  chex.assert_shape(image, (None, None, None, len(mean)))
  shift, scale = (jnp.asarray(moment, jnp.float32).reshape(1, 1, 1, -1) for moment in (mean, std))
  return ((image.astype(jnp.float32) / 255 - shift) / scale).astype(dtype)
