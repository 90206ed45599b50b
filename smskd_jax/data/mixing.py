"""Mixtures of the images of a batch, and of their labels. Pure.

b batch, h w c image, k classes. A partner is another image of the *global* batch: with an `axis_name`, the images of
all devices are gathered (uint8 ones are a quarter of the traffic) and shuffled in an order that all devices draw alike.
One device and many thus make the same mixtures of the same global batch. Which partner an image gets depends on its
place in that batch, and so, unlike in the other views, on what it lies beside.

The share of the partner is one number a batch, as in the papers' code.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp


def mixup(
  key: jax.Array, image: jax.Array, target: jax.Array, axis_name: str | None = None, *, alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """share * own + (1 - share) * partner's, of images and targets; the share is drawn from Beta(alpha, alpha).

  Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, https://arxiv.org/abs/1710.09412.

  Args:
    key: [], a typed key that already holds the stage and the step, the same on all devices.
    image: [b, h, w, c]. Mixing before or after `normalize` is the same to rounding.
    target: [b, k], floats: one-hot or soft labels.
    axis_name: the axis of devices that shares a batch; None for one device.
    alpha: > 0; the paper has 1 for CIFAR and 0.2 to 0.4 for ImageNet.

  Returns:
    Image, of its own type where that is a float, else float32; and target.
  """
  check_options("mixup", alpha=alpha)
  share = _sample_mixing_weight(key, alpha)
  other_image, other_target = _shuffled_batch(jax.random.fold_in(key, 1), image, target, axis_name)
  wide = lambda x: x.astype(jnp.float32)
  mix = lambda own, other: share * wide(own) + (1 - share) * wide(other)
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
  """A rectangle of the partner in each image, and as much of the partner's target.

  Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
  https://arxiv.org/abs/1905.04899. The rectangle is the same in all images of a batch, has the image's shape and an
  area of 1 - share, before what lies outside the image is cut off; targets have the share that is left.

  Args:
    key: [], a typed key that already holds the stage and the step, the same on all devices.
    image: [b, h, w, c], of any type.
    target: [b, k], floats: one-hot or soft labels.
    axis_name: the axis of devices that shares a batch; None for one device.
    alpha: > 0, of the share's Beta(alpha, alpha).
    probability: of a batch to be mixed at all; the paper's code has 0.5 for CIFAR and 1 for ImageNet.

  Returns:
    Image and target, of their own types.
  """
  check_options("cutmix", alpha=alpha, probability=probability)
  h, w = image.shape[1:3]
  share = _sample_mixing_weight(key, alpha)
  other_image, other_target = _shuffled_batch(jax.random.fold_in(key, 1), image, target, axis_name)
  *middle, mixed = jax.random.uniform(jax.random.fold_in(key, 2), (3,))
  side = jnp.where(mixed < probability, jnp.sqrt(1 - share), 0)
  rows, columns = (_interval_mask(n, at, side) for n, at in zip((h, w), middle, strict=True))
  image = jnp.where(rows[None, :, None, None] & columns[None, None, :, None], other_image, image)
  of_partner = jnp.mean(rows) * jnp.mean(columns)
  own, other = (x.astype(jnp.float32) for x in (target, other_target))
  return image, (own + of_partner * (other - own)).astype(target.dtype)


def check_options(name: str, *, alpha: float = 1.0, probability: float = 1.0) -> None:
  """Checks the options of a mixture.

  Raises:
    ValueError: alpha is not positive, or the probability not in [0, 1].
  """
  if not alpha > 0:
    raise ValueError(f"{name}: alpha must be a positive number, got {alpha!r}")
  if not 0 <= probability <= 1:
    raise ValueError(f"{name}: probability must be a number from 0 to 1, got {probability!r}")


def _sample_mixing_weight(key, alpha):
  key = jax.random.fold_in(key, 0)
  # Beta(1, 1), which is the rule, is uniform: seconds less to compile.
  return jax.random.uniform(key) if alpha == 1 else jax.random.beta(key, alpha, alpha)


def _interval_mask(n, center, fraction):
  """Which of n pixels lie in a stretch of `side` of them about the middle, both in [0, 1): [n], bool."""
  pixel, center = jnp.arange(n, dtype=jnp.float32), jnp.floor(center * n)
  half = jnp.floor(jnp.floor(n * fraction) / 2)
  return (pixel >= center - half) & (pixel < center + half)


def _shuffled_batch(key, image, target, axis_name):
  """The global batch's images and targets in a drawn order: of it, this device's rows."""
  image, target = jnp.asarray(image), jnp.asarray(target)
  b = len(image)
  if axis_name is None:
    order = jax.random.permutation(key, b)
  else:
    image, target = jax.lax.all_gather((image, target), axis_name, tiled=True)
    order = jax.random.permutation(key, len(image))
    order = jax.lax.dynamic_slice_in_dim(order, b * jax.lax.axis_index(axis_name), b)
  return image[order], target[order]


def identity(
  key: jax.Array, image: jax.Array, target: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
  """No mixture."""
  del key, axis_name
  return image, target


MIXES: Mapping[str, Callable[..., tuple[jax.Array, jax.Array]]] = MappingProxyType(
  {"none": identity, "mixup": mixup, "cutmix": cutmix}
)
