"""Tests of losses/fitnet.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import fitnet
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(*features):
  return Outputs(None, None, features, features)


@jax.jit
def run(student, teacher):
  """Loss, MethodVariables at the start and state afterwards of one step, with the maps at layer 0."""
  method = fitnet.method(student_layer=0, teacher_layer=0)
  student_outputs, teachers = outputs(student), (outputs(teacher),)
  aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, teachers)), None)
  loss, state = method.apply(*aux, student_outputs, teachers, Context(None, jax.random.key(1)))
  return loss, aux, state


def test_worked_by_hand():
  student = np.arange(8.0).reshape(2, 2, 2, 1)
  np.testing.assert_allclose(fitnet.loss(student, np.zeros_like(student)), [14 / 4, 126 / 4])


def test_gradient():
  teacher = maps(0, 2, 3, 3, 2)
  check_grads(lambda s: fitnet.loss(s, teacher), (maps(1, 2, 3, 3, 2),), order=1)


@pytest.mark.parametrize(
  "student, teacher, kernel",
  [
    ((8, 8, 3), (8, 8, 5), (1, 1)),
    ((8, 8, 3), (4, 4, 5), (3, 3)),
    ((4, 4, 3), (8, 8, 5), (4, 4)),
    ((8, 8, 3), (2, 2, 5), (1, 1)),
    ((2, 2, 3), (8, 8, 5), (1, 1)),
    ((7, 7, 3), (3, 3, 5), (1, 1)),
    ((8, 4, 3), (4, 8, 5), (3, 4)),
    ((8, 9, 3), (8, 3, 5), (1, 1)),
    ((4, 9, 3), (8, 3, 5), (4, 1)),
    ((2, 1, 5), (1, 2, 3), (3, 4)),
    ((1, 1, 1), (1, 1, 1), (1, 1)),
  ],
)
def test_any_pair_of_maps(student, teacher, kernel):
  loss, aux, _ = jax.eval_shape(run, maps(0, 3, *student), maps(1, 3, *teacher))
  assert loss.shape == (3,)
  assert aux.params["conv"]["kernel"].shape == (*kernel, student[-1], teacher[-1])


def convolve(x, kernel, stride):
  """A strided convolution along h of [b, h, 1, c], 3 wide, padded by 1, in plain NumPy."""
  padded = np.pad(x[:, :, 0], ((0, 0), (1, 1), (0, 0)))
  ends = range(0, x.shape[1], stride)
  return np.stack([np.einsum("bkc,kcd->bd", padded[:, i : i + 3], kernel) for i in ends], axis=1)[:, :, None]


def spread(x, kernel):
  """A transposed convolution along h of [b, h, 1, c], 4 wide, of stride 2, cropped by 1, in plain NumPy."""
  b, h, _, _ = x.shape
  y = np.zeros((b, 2 * h + 2, kernel.shape[-1]))
  for i in range(h):
    y[:, 2 * i : 2 * i + 4] += np.einsum("bc,kcd->bkd", x[:, i, 0], kernel)
  return y[:, 1:-1, None]


@pytest.mark.parametrize(
  "teacher_height, convolution",
  [
    (6, lambda x, kernel: x @ kernel[0, 0]),
    (3, lambda x, kernel: convolve(x, kernel[:, 0], 2)),
    # A transposed convolution is a convolution with the kernel turned round.
    (12, lambda x, kernel: spread(x, kernel[::-1, 0])),
    (2, lambda x, kernel: np.asarray(jax.image.resize(x, (4, 2, 1, 3), "linear")) @ kernel[0, 0]),
  ],
)
def test_regressor_in_numpy(teacher_height, convolution):
  student, teacher = maps(0, 4, 6, 1, 3), maps(1, 4, teacher_height, 1, 2)
  loss, aux, state = run(student, teacher)
  x = convolution(np.asarray(student), np.asarray(aux.params["conv"]["kernel"]))
  mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
  expected = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
  np.testing.assert_allclose(loss, fitnet.loss(expected, teacher), rtol=1e-9)
  np.testing.assert_allclose(state["norm"]["mean"], 0.1 * mean.ravel(), rtol=1e-9)
  np.testing.assert_allclose(state["norm"]["var"], 0.9 + 0.1 * var.ravel(), rtol=1e-9)


def test_the_running_statistics_approach_those_of_the_batch_and_do_not_change_the_loss():
  student, teacher = maps(0, 4, 4, 4, 3), maps(1, 4, 4, 4, 2)
  first, aux, state = run(student, teacher)

  @jax.jit
  def step(state):
    return fitnet.method(student_layer=0, teacher_layer=0).apply(
      aux.params, state, outputs(student), (outputs(teacher),), Context(None)
    )

  for _ in range(200):
    loss, state = step(state)
  np.testing.assert_allclose(loss, first)
  x = student @ aux.params["conv"]["kernel"][0, 0]
  np.testing.assert_allclose(state["norm"]["mean"], x.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(state["norm"]["var"], x.var((0, 1, 2)), rtol=1e-6)


def test_the_regressor_and_the_student_learn():
  method = fitnet.method(student_layer=0, teacher_layer=0)
  student, teacher = maps(0, 4, 8, 8, 3), jnp.abs(maps(1, 4, 4, 4, 5))
  aux = method.init(jax.random.key(0), outputs(student), (outputs(teacher),), None)

  @jax.jit
  def gradients(params, student):
    def loss(p, s):
      return method.apply(p, aux.state, outputs(s), (outputs(teacher),), Context(None))[0].mean()

    return jax.value_and_grad(loss, argnums=(0, 1))(params, student)

  before, (by_params, by_student) = gradients(aux.params, student)
  assert all((x != 0).any() for x in jax.tree.leaves((by_params, by_student)))
  params = jax.tree.map(lambda p, g: p - 0.1 * g, aux.params, by_params)
  after, _ = gradients(params, student - 0.1 * by_student)
  assert after < before


def test_initial_weights_follow_pytorch():
  _, aux, _ = run(maps(0, 1, 4, 4, 64), maps(1, 1, 2, 2, 64))
  kernel, bound = aux.params["conv"]["kernel"], 1 / np.sqrt(64 * 9)
  assert np.abs(kernel).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.02)
