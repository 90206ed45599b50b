"""The task: what labels ask of a network, whole, smoothed, mixed of two, or absent. Pure.

b batch, k classes. A label of -1 is absent: the image is there for distillation alone.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.contract import pmean

IGNORE_LABEL = -1


class Targets(NamedTuple):
  """What is right for each image of a view."""

  label: jax.Array  # [b], int32; of a mixed image, the label of its larger part
  # [b, k], the shares of the classes in mixed images; None where none is mixed
  soft_label: jax.Array | None = None


def cross_entropy(logits: jax.Array, targets: Targets, *, smoothing: float = 0.0) -> jax.Array:
  """Cross-entropy with the labels, per example; 0 where a label is absent.

  Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
  https://arxiv.org/abs/1512.00567, section 7: the right class gets 1 - smoothing + smoothing / k.

  Args:
    logits: [b, k].
    answer: the labels.
    smoothing: in [0, 1).

  Returns:
    [b], in nats.
  """
  chex.assert_rank([logits, targets.label], [2, 1])
  if targets.soft_label is None and not smoothing:
    values = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets.label, 0))
  else:
    target = soft_labels(targets, logits.shape[-1], logits.dtype)
    values = optax.softmax_cross_entropy(logits, optax.smooth_labels(target, smoothing))
  return jnp.where(targets.label == IGNORE_LABEL, 0, values)


def soft_labels(targets: Targets, num_classes: int, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
  """The share of each class in each image, [b, k]; zeros where a label is absent."""
  if targets.soft_label is not None:
    return targets.soft_label.astype(dtype)
  return jax.nn.one_hot(targets.label, num_classes, dtype=dtype)


def labeled_fraction(label: jax.Array, axis_name: str | None = None) -> jax.Array:
  """The share of the images of all devices that have a label, []; not quite zero where none has."""
  share = pmean(jnp.mean(label != IGNORE_LABEL, dtype=jnp.float32), axis_name)
  return jnp.maximum(share, jnp.finfo(jnp.float32).tiny)
