"""Tests of losses/embedding_mse.py."""

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.losses import embedding_mse
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs


def test_is_the_mean_squared_difference():
  student, teacher = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
  torch_mse = ((student - teacher) ** 2).mean()  # as torch.nn.MSELoss has it, over all numbers of the batch
  np.testing.assert_allclose(jnp.mean(embedding_mse.loss(student, teacher)), torch_mse, rtol=1e-6)
  gradient = jax.grad(lambda s: embedding_mse.loss(s, teacher).mean())(jnp.asarray(student))
  np.testing.assert_allclose(gradient, 2 * (student - teacher) / student.size, rtol=1e-5, atol=1e-7)


def test_an_example_counts_for_itself():
  student, teacher = np.zeros((2, 4), np.float32), np.array([[0, 0, 0, 0], [2, 0, 0, 0]], np.float32)
  np.testing.assert_allclose(embedding_mse.loss(student, teacher), [0, 1])


def test_embeddings_of_other_widths_are_projected():
  def outputs(d):
    return Outputs(jnp.zeros((2, 3)), jnp.ones((2, d)), (), ())

  same, other = (
    embedding_mse.method().init(jax.random.key(0), outputs(d), (outputs(8),), None) for d in (8, 4)
  )
  assert same.params == {} and other.params["projection"]["kernel"].shape == (4, 8)
  values, _ = embedding_mse.method().apply(
    other.params, other.state, outputs(4), (outputs(8),), Context(None)
  )
  kernel, bias = (np.asarray(other.params["projection"][name]) for name in ("kernel", "bias"))
  projected = np.ones((2, 4)) @ kernel + bias
  np.testing.assert_allclose(values, ((projected - 1) ** 2).mean(1), rtol=1e-6)
