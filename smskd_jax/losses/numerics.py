"""Numerically safe functions that several losses share."""

import jax
import jax.numpy as jnp


def upcast(x: jax.Array) -> jax.Array:
  """Casts to float32 at least: half precision loses the digits that a loss measures."""
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def safe_norm(x: jax.Array) -> jax.Array:
  """Euclidean norm over the last axis; zero, with a zero gradient, below 1e-12.

  The plain square root has an infinite slope at zero, which the chain rule turns into NaN.
  """
  square = jnp.sum(jnp.square(x), axis=-1)
  is_zero = square < 1e-24
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def safe_divide(x: jax.Array, y: jax.Array) -> jax.Array:
  """x / y, and zero, with a zero gradient, where y is zero."""
  is_zero = y == 0
  return jnp.where(is_zero, 0.0, x / jnp.where(is_zero, 1.0, y))


def normalize_scale(x: jax.Array) -> jax.Array:
  """Divides rows by their largest magnitude, a constant of the gradient; zeros stay zero.

  For functions that ignore the scale of their rows: neither their value nor their gradient changes, and their powers
  stay in the range of float32.
  """
  largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
  return safe_divide(x, jax.lax.stop_gradient(largest))


def huber(x: jax.Array) -> jax.Array:
  """The Huber function of threshold 1: x^2 / 2 near zero, |x| - 1/2 beyond 1."""
  return jnp.where(jnp.abs(x) <= 1, 0.5 * jnp.square(x), jnp.abs(x) - 0.5)


def kl_divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """KL(p || q) over the last axis, from finite logarithms of the probabilities."""
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def gather_label(x: jax.Array, labels: jax.Array) -> jax.Array:
  """x[i, labels[i]] of each row i: [b] of x, [b, k], and labels, [b]."""
  return jnp.take_along_axis(x, labels[:, None], axis=-1)[:, 0]


def log_softmax_within(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Logarithm of the softmax [b, k] over the classes of a mask [b, k].

  All other entries are 0, and so are rows without a class: they add nothing to a divergence or a cross-entropy of two
  such arrays, and have no gradient.
  """
  is_empty = ~jnp.any(mask, axis=-1, keepdims=True)
  return jnp.where(mask, jax.nn.log_softmax(jnp.where(mask | is_empty, logits, -jnp.inf)), 0.0)


def class_mask(classes: jax.Array, num_classes: int) -> jax.Array:
  """Mask [b, num_classes] of the classes [b, m] of each row."""
  return jnp.any(classes[:, :, None] == jnp.arange(num_classes)[None, None, :], axis=1)


def log_softmax_without_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Logarithm of the softmax [b, k] over all classes but the label's, whose entry is 0."""
  return log_softmax_within(logits, ~class_mask(labels[:, None], logits.shape[-1]))


def log_split(logits: jax.Array, mask: jax.Array) -> jax.Array:
  """Logarithms [b, 2] of the total probabilities within and outside a mask [b, k].

  Every row needs classes of both kinds.
  """
  log_p = jax.nn.log_softmax(logits)
  parts = [jax.nn.logsumexp(jnp.where(part, log_p, -jnp.inf), axis=-1) for part in (mask, ~mask)]
  return jnp.stack(parts, axis=-1)
