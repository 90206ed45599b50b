"""The operations of AutoAugment and its successors on a batch: another operation for each image. Pure.

They are Pillow's, on uint8: the same levels for all that keep pixels in place, the same pixels for nearest warps.

  shear_x, shear_y               magnitude: pixels a pixel, to where the image is read
  cubic_shear_x, cubic_shear_y   the same, with cubic interpolation
  translate_x, translate_y       pixels, to where the image is read
  rotate                         degrees, counterclockwise
  posterize                      bits, 1 to 8
  solarize                       the level from which on it inverts
  autocontrast, equalize, invert none
  color, contrast, brightness, sharpness   the factor of ImageEnhance: 1 changes nothing

Of each group (warps, tables, blends) there is one pass over the batch, and none where `names` has none of its
operations: a whole policy costs little more than one operation.
"""

from collections.abc import Callable, Mapping, Sequence
import functools

import chex
import jax
import jax.numpy as jnp

from smskd_jax.data import blends, lookups, warps

IDENTITY = "identity"
OPERATIONS: tuple[str, ...] = (IDENTITY, *warps.MAPS, *warps.CUBIC, *lookups.TABLES, *blends.DEGENERATES)


def apply(
  image: jax.Array, choice: jax.Array, magnitude: jax.Array, *, names: Sequence[str], fill: warps.Fill = 0
) -> jax.Array:
  """Applies to each image the operation chosen for it.

  Args:
    image: [b, h, w, c], uint8, of 1 or 3 channels.
    choice: [b], integers: places in `names`.
    magnitude: [b], floats, each in its operation's unit.
    names: which operations there are to choose from, of `OPERATIONS`.
    fill: the colour of what a warp brings in from outside the image: a level, or one for each channel.

  Returns:
    [b, h, w, c], uint8.

  Raises:
    ValueError: an unknown name.
  """
  chex.assert_rank([image, choice, magnitude], [4, 1, 1])
  chex.assert_equal_shape_prefix([image, choice, magnitude], 1)
  if unknown := set(names) - set(OPERATIONS):
    raise ValueError(f"unknown operations {sorted(unknown)}; known: {', '.join(OPERATIONS)}")
  magnitude = magnitude.astype(jnp.float32)
  chosen = {name: choice == i for i, name in enumerate(names)}
  image = _warp(image, chosen, magnitude, fill)
  image = _look_up(image, chosen, magnitude)
  return _blend(image, chosen, magnitude)


Chosen = Mapping[str, jax.Array]  # by name: for which images, [b], bool


def _among(group: Mapping[str, Callable], chosen: Chosen) -> Chosen:
  return {name: mask for name, mask in chosen.items() if name in group}


def _warp(image: jax.Array, chosen: Chosen, magnitude: jax.Array, fill: warps.Fill) -> jax.Array:
  h, w = image.shape[1:3]
  if chosen_maps := _among(warps.MAPS, chosen):
    affine = warps.identity(magnitude)
    for name, mask in chosen_maps.items():
      affine = jnp.where(mask[:, None], warps.MAPS[name](magnitude, h, w), affine)
    image = _apart(_any(chosen_maps), lambda image: warps.nearest(image, affine, fill), image)
  for name, mask in _among(warps.CUBIC, chosen).items():
    make = lambda image, name=name, mask=mask: jnp.where(
      mask[:, None, None, None], warps.CUBIC[name](image, magnitude, fill), image
    )
    image = _apart(mask, make, image)
  return image


def _look_up(image: jax.Array, chosen: Chosen, magnitude: jax.Array) -> jax.Array:
  chosen = _among(lookups.TABLES, chosen)
  if not chosen:
    return image
  table = jnp.broadcast_to(lookups.LEVELS, (image.shape[0], image.shape[-1], 256))
  for name, mask in chosen.items():
    make = lambda table, name=name, mask=mask: jnp.where(
      mask[:, None, None], lookups.TABLES[name](image, magnitude), table
    )
    table = _apart(mask, make, table)
  return _apart(_any(chosen), lambda image: lookups.look_up(image, table), image)


def _blend(image: jax.Array, chosen: Chosen, magnitude: jax.Array) -> jax.Array:
  chosen = _among(blends.DEGENERATES, chosen)
  if not chosen:
    return image

  def make(image):
    degenerate, factor = jnp.zeros((1, 1, 1, 1), jnp.int32), jnp.ones_like(magnitude)
    for name, mask in chosen.items():
      degenerate = jnp.where(mask[:, None, None, None], blends.DEGENERATES[name](image), degenerate)
      factor = jnp.where(mask, magnitude, factor)
    return blends.blend(degenerate, image, factor)

  return _apart(_any(chosen), make, image)


def _any(chosen: Chosen) -> jax.Array:
  """For which images any of the operations has been chosen, [b], bool."""
  return functools.reduce(jnp.logical_or, chosen.values())


def _apart(mask: jax.Array, make: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """make(x), where any image is in the mask, else x, which is then the same: as a computation apart.

  On a CPU, XLA else fuses `make` with what reads its result, and does all of it again for every pixel that is read:
  measured 5 times slower. There is no fusing across a condition. Accelerators have a barrier for it, and would have to
  wait for the condition.
  """
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: jax.lax.cond(jnp.any(mask), make, lambda x: x, x),
    default=lambda x: jax.lax.optimization_barrier(make(x)),
  )
