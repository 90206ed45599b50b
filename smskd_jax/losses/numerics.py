"""Mathematics that several losses share."""

import jax
import jax.numpy as jnp


def widen(x: jax.Array) -> jax.Array:
  """`x` in float32 at least: sums and differences of half-precision outputs lose what a loss measures."""
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def norm(x: jax.Array) -> jax.Array:
  """Euclidean norm over the last axis, exactly zero, with a zero gradient, where it is below 1e-12.

  The plain square root has an infinite slope at zero, which the chain rule turns into NaN.
  """
  square = jnp.sum(jnp.square(x), axis=-1)
  is_zero = square < 1e-24
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def divide(x: jax.Array, by: jax.Array) -> jax.Array:
  """x / by, and zero, with a zero gradient, where `by` is zero."""
  is_zero = by == 0
  return jnp.where(is_zero, 0.0, x / jnp.where(is_zero, 1.0, by))


def huber(x: jax.Array) -> jax.Array:
  """The Huber function of threshold 1: x^2 / 2 near zero, |x| - 1/2 beyond 1."""
  return jnp.where(jnp.abs(x) <= 1, 0.5 * jnp.square(x), jnp.abs(x) - 0.5)
