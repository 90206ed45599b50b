"""Targets of the cross-entropy: labels, soft labels, smoothing, missing labels. Pure.

b batch, k classes. An image without a label has the label -1 and trains by distillation alone.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.contract import pmean

IGNORE_LABEL = -1


class Targets(NamedTuple):
  """Labels of the images of a view."""

  label: jax.Array  # [b], int32; of a mixed image, the label of the larger part
  soft_label: jax.Array | None = None  # [b, k], fractions of the classes in mixed images; None without mixing


def cross_entropy(logits: jax.Array, targets: Targets, *, smoothing: float = 0.0) -> jax.Array:
  """Cross-entropy with the targets, per example; 0 for images without a label.

  Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
  https://arxiv.org/abs/1512.00567, section 7: the true class gets 1 - smoothing + smoothing / k.

  Args:
    logits: [b, k].
    targets: labels.
    smoothing: in [0, 1).

  Returns:
    [b], in nats.
  """
  chex.assert_rank([logits, targets.label], [2, 1])
  if targets.soft_label is None and not smoothing:
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets.label, 0))
  else:
    probs = soft_labels(targets, logits.shape[-1], logits.dtype)
    values = optax.softmax_cross_entropy(logits, optax.smooth_labels(probs, smoothing))
  return jnp.where(targets.label == IGNORE_LABEL, 0, values)


def soft_labels(targets: Targets, num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
  """Fractions of the classes in each image, [b, k]; zeros for images without a label."""
  if targets.soft_label is not None:
    return targets.soft_label.astype(dtype)
  return jax.nn.one_hot(targets.label, num_classes, dtype=dtype)


def labeled_fraction(label: jax.Array, axis_name: str | None = None) -> jax.Array:
  """Fraction of labeled images in the global batch, []; the least positive float32 if none."""
  fraction = pmean(jnp.mean(label != IGNORE_LABEL, dtype=jnp.float32), axis_name)
  return jnp.maximum(fraction, jnp.finfo(jnp.float32).tiny)
