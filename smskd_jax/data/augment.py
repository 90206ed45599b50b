"""Crop, flip and normalization of a batch of images, inside the compiled step. Pure.

Shapes: b batch, h height, w width, c channels. Images stay uint8 until `normalize`.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

# Folded into a key, gives a key that no example draws from: indices of examples are below 2**31.
RNG_SALT = 2**32 - 1


def uniform_per_example(key: jax.Array, index: jax.Array, count: int) -> jax.Array:
  """Uniform numbers in [0, 1), [b, count], of the key and each example's index [b] alone."""
  return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (count,)))(index)


def constant_color(fill: int | Sequence[int]) -> jax.Array:
  """A grey level, or one for each channel, as a uint8 image of one pixel: [1, 1, 1, 1 or c]."""
  return jnp.asarray(fill, jnp.uint8).reshape(1, 1, 1, -1)


def crop_flip(key: jax.Array, image: jax.Array, index: jax.Array, *, padding: int, flip: bool) -> jax.Array:
  """CIFAR's usual augmentation: a random crop of the zero-padded image, and a flip.

  The flip has probability 1/2.

  Args:
    key: [], a typed key that already holds the stage and the step.
    image: [b, h, w, c], uint8.
    index: [b], integers, indices in the training set.
    padding: pixels of zeros on each side; 0 for no crop.
    flip: mirror left and right with probability 1/2.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: the padding is negative or as wide as an image.
  """
  chex.assert_rank([image, index], [4, 1])
  chex.assert_equal_shape_prefix([image, index], 1)
  return apply_crop_flip(image, *sample_crop_flip(key, index, padding), padding=padding, flip=flip)


def sample_crop_flip(key: jax.Array, index: jax.Array, padding: int) -> tuple[jax.Array, jax.Array]:
  """Samples the position of the crop and the flip for each example.

  The sample depends on the key and the example's index alone, not on the device or the rest of the batch.

  Args:
    key: [], a typed key that already holds the stage and the step.
    index: [b], integers, indices in the training set.
    padding: pixels of border on each side.

  Returns:
    Upper left corner of the crop in the padded image, [b, 2], int32, in 0..2*padding; and the flip, [b], bool.
  """
  uniforms = uniform_per_example(key, index, 3)
  corner = jnp.floor(uniforms[:, :2] * (2 * padding + 1)).astype(jnp.int32)
  return corner, uniforms[:, 2] < 0.5


def apply_crop_flip(
  image: jax.Array, corner: jax.Array, flipped: jax.Array, *, padding: int, flip: bool
) -> jax.Array:
  """Crops and mirrors images by given samples.

  Args:
    image: [b, h, w, c], uint8.
    corner: [b, 2], int32, in the padded image.
    flipped: [b], bool; ignored without `flip`.
    padding: pixels of zeros on each side.
    flip: mirror the images that `flipped` selects.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: the padding is negative or as wide as an image.
  """
  _, height, width, channels = image.shape
  if not 0 <= padding < min(height, width):
    raise ValueError(
      f"crop_flip.padding: {padding} pixels around images of {height}x{width}; use 0 to {min(height, width) - 1}"
    )
  if padding:
    padded = jnp.pad(image, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shape = (height, width, channels)
    image = jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), shape))(padded, corner)
  if flip:
    image = jnp.where(flipped[:, None, None, None], image[:, :, ::-1], image)
  return image


def normalize(
  image: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
  """(image / 255 - mean) / std, computed in float32.

  Args:
    image: [b, h, w, c], uint8.
    mean: c numbers, on a scale where white is 1.
    std: c numbers, on the same scale.
    dtype: of the result.

  Returns:
    [b, h, w, c].
  """
  chex.assert_shape(image, (None, None, None, len(mean)))
  shift, scale = (jnp.asarray(stat, jnp.float32).reshape(1, 1, 1, -1) for stat in (mean, std))
  return ((image.astype(jnp.float32) / 255 - shift) / scale).astype(dtype)
