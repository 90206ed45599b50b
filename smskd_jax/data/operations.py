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

from smskd_jax.data import enhance_ops, geometric_ops, lut_ops

IDENTITY = "identity"
OP_NAMES: tuple[str, ...] = (
  IDENTITY,
  *geometric_ops.AFFINE_OPS,
  *geometric_ops.CUBIC_OPS,
  *lut_ops.LUT_OPS,
  *enhance_ops.ENHANCE_OPS,
)


def apply_ops(
  image: jax.Array,
  op_index: jax.Array,
  magnitude: jax.Array,
  *,
  op_names: Sequence[str],
  fill: geometric_ops.Fill = 0,
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
  chex.assert_rank([image, op_index, magnitude], [4, 1, 1])
  chex.assert_equal_shape_prefix([image, op_index, magnitude], 1)
  if unknown := set(op_names) - set(OP_NAMES):
    raise ValueError(f"unknown operations {sorted(unknown)}; known: {', '.join(OP_NAMES)}")
  magnitude = magnitude.astype(jnp.float32)
  chosen = {name: op_index == i for i, name in enumerate(op_names)}
  image = _apply_geometric(image, chosen, magnitude, fill)
  image = _apply_luts(image, chosen, magnitude)
  return _apply_enhance(image, chosen, magnitude)


OpMasks = Mapping[str, jax.Array]  # by name: for which images, [b], bool


def _select_group(group: Mapping[str, Callable], masks: OpMasks) -> OpMasks:
  return {name: mask for name, mask in masks.items() if name in group}


def _apply_geometric(
  image: jax.Array, masks: OpMasks, magnitude: jax.Array, fill: geometric_ops.Fill
) -> jax.Array:
  h, w = image.shape[1:3]
  if chosen_maps := _select_group(geometric_ops.AFFINE_OPS, masks):
    affine = geometric_ops.identity_affine(magnitude)
    for name, mask in chosen_maps.items():
      affine = jnp.where(mask[:, None], geometric_ops.AFFINE_OPS[name](magnitude, h, w), affine)
    image = _fusion_barrier(
      _any_selected(chosen_maps), lambda image: geometric_ops.warp_nearest(image, affine, fill), image
    )
  for name, mask in _select_group(geometric_ops.CUBIC_OPS, masks).items():
    make = lambda image, name=name, mask=mask: jnp.where(
      mask[:, None, None, None], geometric_ops.CUBIC_OPS[name](image, magnitude, fill), image
    )
    image = _fusion_barrier(mask, make, image)
  return image


def _apply_luts(image: jax.Array, masks: OpMasks, magnitude: jax.Array) -> jax.Array:
  masks = _select_group(lut_ops.LUT_OPS, masks)
  if not masks:
    return image
  table = jnp.broadcast_to(lut_ops.GREY_LEVELS, (image.shape[0], image.shape[-1], 256))
  for name, mask in masks.items():
    make = lambda table, name=name, mask=mask: jnp.where(
      mask[:, None, None], lut_ops.LUT_OPS[name](image, magnitude), table
    )
    table = _fusion_barrier(mask, make, table)
  return _fusion_barrier(_any_selected(masks), lambda image: lut_ops.apply_lut(image, table), image)


def _apply_enhance(image: jax.Array, masks: OpMasks, magnitude: jax.Array) -> jax.Array:
  masks = _select_group(enhance_ops.ENHANCE_OPS, masks)
  if not masks:
    return image

  def make(image):
    degenerate, factor = jnp.zeros((1, 1, 1, 1), jnp.int32), jnp.ones_like(magnitude)
    for name, mask in masks.items():
      degenerate = jnp.where(mask[:, None, None, None], enhance_ops.ENHANCE_OPS[name](image), degenerate)
      factor = jnp.where(mask, magnitude, factor)
    return enhance_ops.blend(degenerate, image, factor)

  return _fusion_barrier(_any_selected(masks), make, image)


def _any_selected(masks: OpMasks) -> jax.Array:
  """For which images any of the operations has been chosen, [b], bool."""
  return functools.reduce(jnp.logical_or, masks.values())


def _fusion_barrier(mask: jax.Array, fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """make(x), where any image is in the mask, else x, which is then the same: as a computation apart.

  On a CPU, XLA else fuses `make` with what reads its result, and does all of it again for every pixel that is read:
  measured 5 times slower. There is no fusing across a condition. Accelerators have a barrier for it, and would have to
  wait for the condition.
  """
  return jax.lax.platform_dependent(
    x,
    cpu=lambda x: jax.lax.cond(jnp.any(mask), fn, lambda x: x, x),
    default=lambda x: jax.lax.optimization_barrier(fn(x)),
  )
