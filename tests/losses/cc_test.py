"""Tests of losses/cc.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import cc
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def embeddings(seed, b=5, d=4):
  return np.random.default_rng(seed).normal(size=(b, d))


def outputs(pooled):
  return Outputs(None, pooled, (), ())


def test_worked_by_hand():
  # Errors (1, 2), (3, 0), (1, 1): products 3 and 3 of two pairs, times 3 / 2.
  student, teacher = (
    np.array([[1.0, -2.0], [3.0, 0.0], [0.0, 1.0]]),
    np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]),
  )
  np.testing.assert_allclose(cc.loss(student, teacher), [4.5, 4.5, 0.0])


@pytest.mark.parametrize("b", [2, 3, 8])
def test_the_mean_is_over_pairs_of_neighbours(b):
  student, teacher = embeddings(0, b), embeddings(1, b)
  error = np.abs(student - teacher)
  expected = sum(error[i] @ error[i + 1] for i in range(b - 1)) / (b - 1)
  np.testing.assert_allclose(cc.loss(student, teacher).mean(), expected)


def test_another_order_is_another_loss_and_the_reverse_the_same():
  student, teacher = embeddings(0), embeddings(1)

  def mean(order):
    return cc.loss(student[order], teacher[order]).mean()

  np.testing.assert_allclose(mean(np.arange(5)[::-1]), mean(np.arange(5)))
  assert abs(mean(np.array([2, 0, 4, 1, 3])) - mean(np.arange(5))) > 1e-3


def test_zero_for_a_batch_of_one_and_where_the_embeddings_agree():
  np.testing.assert_array_equal(cc.loss(embeddings(0, 1), embeddings(1, 1)), [0.0])
  value, gradient = jax.value_and_grad(lambda s: cc.loss(s, embeddings(0)).sum())(embeddings(0))
  assert value == 0 and (gradient == 0).all()


def test_the_last_of_all_devices_has_no_neighbour():
  student, teacher = embeddings(0, 8), embeddings(1, 8)

  def split(x):
    return x.reshape(4, 2, -1)

  on_devices = jax.pmap(
    lambda s, t: cc.loss(s, t, axis_name="batch"), axis_name="batch", devices=jax.devices()[:4]
  )
  np.testing.assert_allclose(on_devices(split(student), split(teacher)).ravel(), cc.loss(student, teacher))


def test_the_method_in_numpy_and_both_embeddings_learn():
  method, student, teacher = cc.method(dimension=7), embeddings(0, 5, 3), embeddings(1, 5, 6)
  aux = method.init(jax.random.key(0), outputs(student), (outputs(teacher),), None)
  kernels = aux.params["student"]["kernel"], aux.params["teacher"]["kernel"]
  assert [k.shape for k in kernels] == [(3, 7), (6, 7)] and aux.state == {}

  @jax.jit
  def run(params):
    loss, state = method.apply(params, {}, outputs(student), (outputs(teacher),), Context(None))
    return loss.mean(), (loss, state)

  (_, (loss, state)), gradient = jax.value_and_grad(run, has_aux=True)(aux.params)

  def embed(x, layer):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])

  expected = cc.loss(embed(student, aux.params["student"]), embed(teacher, aux.params["teacher"]))
  np.testing.assert_allclose(loss, expected)
  assert state == {} and all(np.any(x) for x in jax.tree.leaves(gradient))


def test_layers_start_as_in_pytorch():
  aux = cc.method().init(
    jax.random.key(0), outputs(embeddings(0, 1, 64)), (outputs(embeddings(0, 1, 256)),), None
  )
  for name, inputs in (("student", 64), ("teacher", 256)):
    kernel, bound = aux.params[name]["kernel"], 1 / np.sqrt(inputs)
    assert kernel.shape == (inputs, 128) and np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
