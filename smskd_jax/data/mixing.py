"""Mixup and CutMix: mixtures of the images of a batch and of their labels. Pure.

Shapes: b batch, h height, w width, c channels, k classes. The partner of an image is another image of the *global*
batch: with an `axis_name`, the images of all devices are gathered (uint8 images are a quarter of the traffic) and
shuffled in an order that all devices draw alike, so that one device and several make the same mixtures of a global
batch. The partner depends on the position in that batch, and so, unlike in other views, on the other images of the
batch.

The mixing weight is one number per batch, as in the papers' code.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from smskd_jax.errors import check_positive, check_unit_interval


def mixup(
  key: jax.Array, image: jax.Array, target: jax.Array, axis_name: str | None = None, *, alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """weight * x + (1 - weight) * partner, of images and targets.

  The weight is drawn from Beta(alpha, alpha).

  Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.

  Args:
    key: [], a typed key that already holds the stage and the step, equal on all devices.
    image: [b, h, w, c]. Mixing before or after `normalize` is equal to rounding.
    target: [b, k], floats: one-hot or soft labels.
    axis_name: device axis of the global batch; None for one device.
    alpha: > 0; the paper uses 1 for CIFAR and 0.2 to 0.4 for ImageNet.

  Returns:
    Images, in their own type if that is a float, else float32; and targets.

  Raises:
    ValueError: `alpha` is not positive.
  """
  check_options("mixup", alpha=alpha)
  weight = _sample_mixing_weight(key, alpha)
  other_image, other_target = _shuffled_batch(jax.random.fold_in(key, 1), image, target, axis_name)

  def mix(x, other):
    return weight * x.astype(jnp.float32) + (1 - weight) * other.astype(jnp.float32)

  dtype = image.dtype if jnp.issubdtype(image.dtype, jnp.floating) else jnp.float32
  return mix(image, other_image).astype(dtype), mix(target, other_target).astype(target.dtype)


def cutmix(
  key: jax.Array,
  image: jax.Array,
  target: jax.Array,
  axis_name: str | None = None,
  *,
  alpha: float = 1.0,
  probability: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """Pastes a rectangle of the partner into each image, and mixes targets by the pasted area.

  Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
  https://arxiv.org/abs/1905.04899. The rectangle is equal in all images of a batch, has the shape of the image and an
  area of 1 - weight, before the part outside the image is clipped; targets are mixed by the clipped area.

  Args:
    key: [], a typed key that already holds the stage and the step, equal on all devices.
    image: [b, h, w, c], of any type.
    target: [b, k], floats: one-hot or soft labels.
    axis_name: device axis of the global batch; None for one device.
    alpha: > 0, of the weight's Beta(alpha, alpha).
    probability: of mixing a batch at all; the paper's code uses 0.5 for CIFAR and 1 for ImageNet.

  Returns:
    Images and targets, in their own types.

  Raises:
    ValueError: `alpha` is not positive, or `probability` not in [0, 1].
  """
  check_options("cutmix", alpha=alpha, probability=probability)
  h, w = image.shape[1:3]
  weight = _sample_mixing_weight(key, alpha)
  other_image, other_target = _shuffled_batch(jax.random.fold_in(key, 1), image, target, axis_name)
  *center, apply = jax.random.uniform(jax.random.fold_in(key, 2), (3,))
  fraction = jnp.where(apply < probability, jnp.sqrt(1 - weight), 0)
  rows, columns = (_interval_mask(n, at, fraction) for n, at in zip((h, w), center, strict=True))
  image = jnp.where(rows[None, :, None, None] & columns[None, None, :, None], other_image, image)
  pasted_area = jnp.mean(rows) * jnp.mean(columns)
  first, second = (x.astype(jnp.float32) for x in (target, other_target))
  return image, (first + pasted_area * (second - first)).astype(target.dtype)


def identity(
  key: jax.Array, image: jax.Array, target: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """Images and targets unchanged."""
  del key, axis_name
  return image, target


MIXES: Mapping[str, Callable[..., tuple[jax.Array, jax.Array]]] = MappingProxyType(
  {"none": identity, "mixup": mixup, "cutmix": cutmix}
)


def check_options(name: str, *, alpha: float = 1.0, probability: float = 1.0) -> None:
  """Checks the options of a mixture.

  Raises:
    ValueError: `alpha` is not positive, or `probability` not in [0, 1].
  """
  check_positive(name, alpha=alpha)
  check_unit_interval(name, probability=probability)


def _sample_mixing_weight(key, alpha):
  key = jax.random.fold_in(key, 0)
  # Beta(1, 1), the default, is uniform: saves seconds of compilation.
  return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _interval_mask(n, center, fraction):
  """Mask [n], bool, of the interval of `fraction` n pixels about `center` n.

  Both arguments are in [0, 1).
  """
  pixel, middle = jnp.arange(n, dtype=jnp.float32), jnp.floor(center * n)
  half = jnp.floor(jnp.floor(n * fraction) / 2)
  return (pixel >= middle - half) & (pixel < middle + half)


def _shuffled_batch(key, image, target, axis_name):
  """Partners of this device's examples: rows of the shuffled global batch."""
  image, target = jnp.asarray(image), jnp.asarray(target)
  b = len(image)
  if axis_name is None:
    order = jax.random.permutation(key, b)
  else:
    image, target = jax.lax.all_gather((image, target), axis_name, tiled=True)
    order = jax.random.permutation(key, len(image))
    order = jax.lax.dynamic_slice_in_dim(order, b * jax.lax.axis_index(axis_name), b)
  return image[order], target[order]
