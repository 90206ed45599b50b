"""Tests of layers/batch_norm.py, against Flax's own."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.layers.batch_norm import BatchNorm


def flax_norm(train, axis_name=None):
  return nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=axis_name)


def example(shape=(8, 3, 4, 5)):
  rng = np.random.default_rng(0)
  x = 2 * rng.normal(size=shape) + 3
  variables = {
    "params": {"scale": rng.normal(size=5) + 1, "bias": rng.normal(size=5)},
    "batch_stats": {"mean": rng.normal(size=5), "var": rng.uniform(0.5, 2, 5)},
  }
  return jax.tree.map(jnp.asarray, (x, rng.normal(size=shape), variables))


def loss(norm, variables, x, weights):
  """A loss of which each image's share is known to the device that has it."""
  y, state = norm.apply(variables, x, mutable=["batch_stats"])
  return jnp.mean(weights * jnp.tanh(y)), (y, state["batch_stats"])


def grads(norm, variables, x, weights):
  return jax.value_and_grad(functools.partial(loss, norm), argnums=(0, 1), has_aux=True)(
    variables, x, weights
  )


def assert_close(ours, expected, rtol=1e-10):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), ours, expected)


@pytest.mark.parametrize("shape", [(8, 3, 4, 5), (16, 5)])
def test_training_equals_flax(shape, float64):
  x, weights, variables = example(shape)
  ours = grads(BatchNorm(train=True), variables, x, weights)
  expected = grads(flax_norm(train=True), variables, x, weights)
  # The statistics that are remembered carry no gradient here, nor has anything a use for one.
  ours[1][0].pop("batch_stats"), expected[1][0].pop("batch_stats")
  assert_close(ours, expected)


def test_evaluation_equals_flax(float64):
  x, _, variables = example()
  y = BatchNorm(train=False).apply(variables, x)
  assert_close(y, flax_norm(train=False).apply(variables, x))


def test_same_variables_as_flax():
  x = jnp.ones((2, 3))
  ours = BatchNorm(train=True).init(jax.random.key(0), x)
  expected = flax_norm(train=True).init(jax.random.key(0), x)
  assert_close(ours, expected)
  assert jax.tree.structure(ours) == jax.tree.structure(expected)


def test_over_devices_it_is_the_whole_batch(float64):
  """The share of each device's loss in the gradient of scale and bias is averaged by the caller, as in a step."""
  x, weights, variables = example()
  expected = grads(BatchNorm(train=True), variables, x, weights)

  def on_device(x, weights):
    results = grads(BatchNorm(train=True, axis_name="d"), variables, x, weights)
    (_, (y, state)), (variables_gradient, x_gradient) = results
    return y, state, jax.lax.pmean(variables_gradient["params"], "d"), x_gradient / 4

  parts = [a.reshape(4, 2, *a.shape[1:]) for a in (x, weights)]
  y, state, params_gradient, x_gradient = jax.pmap(on_device, axis_name="d")(*parts)
  (_, (y0, state0)), (variables_gradient0, x_gradient0) = expected
  assert_close((y.reshape(y0.shape), x_gradient.reshape(x_gradient0.shape)), (y0, x_gradient0))
  for device in range(4):
    assert_close(
      jax.tree.map(lambda a, d=device: a[d], (state, params_gradient)),
      (state0, variables_gradient0["params"]),
    )


def test_a_constant_channel_stays_finite():
  """Its variance is zero but for rounding, which must not take it below."""
  x = jnp.full((64, 5), 1000.1)
  (value, _), gradient = grads(BatchNorm(train=True), example()[2], x, jnp.ones((64, 5)))
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_the_gradient_keeps_its_digits_far_from_zero():
  """With a mean of 100 standard deviations, in float32: what the centring inside the sums is for."""
  x, weights, variables = example()
  x = jnp.asarray(x, jnp.float32) + 200
  variables = jax.tree.map(lambda a: a.astype(jnp.float32), variables)
  _, (_, ours) = grads(BatchNorm(train=True), variables, x, jnp.asarray(weights, jnp.float32))
  with jax.enable_x64(True):
    exact = [np.asarray(a, np.float64) for a in (x, weights)]
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables)
    expected = np.asarray(grads(BatchNorm(train=True), wide, *exact)[1][1])
  assert np.abs(ours - expected).max() < 2e-2 * np.abs(expected).max()
