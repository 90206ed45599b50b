"""Tests of losses/afd.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import afd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*features):
  return Outputs(None, None, (None, *features), (None, *features))


STUDENT = outputs(maps(0, 3, 4, 4, 5), maps(1, 3, 2, 2, 4))
TEACHER = outputs(maps(2, 3, 2, 2, 5), maps(3, 3, 2, 2, 6))


def start(student_outputs, teacher, **hparams):
  method = afd.method(**hparams)
  aux = method.init(jax.random.key(0), student_outputs, (teacher,), None)
  return aux, jax.jit(lambda params, x, y: method.apply(params, aux.state, x, (y,), Context(None))[0])


def test_worked_by_hand():
  # Two positions. Directions (1, 0) and (0, 1) in the first channel, (3/5, 4/5) and (4/5, 3/5) in the second.
  student = np.array([[1.0, 3.0], [0.0, 4.0]]).reshape(1, 2, 1, 2)
  teacher = np.array([[0.0, 8.0], [2.0, 6.0]]).reshape(1, 2, 1, 2)
  rows = afd.loss(student, teacher, np.array([[0.25, 0.75]]), eps=0.0)
  np.testing.assert_allclose(rows, [0.25 * (1 + 1) / 2 + 0.75 * (0.04 + 0.04) / 2])


def test_ignores_the_scale_of_each_channel():
  student, teacher = STUDENT.features[1], maps(4, 3, 4, 4, 5)
  attention, scale = jax.nn.softmax(maps(5, 3, 5)), jnp.arange(1.0, 6.0)
  expected = afd.loss(student, teacher, attention, eps=1e-12)
  np.testing.assert_allclose(
    afd.loss(student * scale[None, None, None, :], teacher, attention, eps=1e-12), expected
  )
  np.testing.assert_allclose(
    afd.loss(teacher * scale[None, None, None, :], teacher, attention, eps=1e-12), 0, atol=1e-12
  )


def test_channels_that_are_zero_have_finite_gradients():
  zeros = jnp.zeros((2, 3, 3, 4))
  gradient = jax.grad(lambda *xs: afd.loss(*xs, jnp.full((2, 4), 0.25)).sum(), argnums=(0, 1))
  for student, teacher in ((zeros, maps(0, 2, 3, 3, 4)), (maps(0, 2, 3, 3, 4), zeros), (zeros, zeros)):
    assert all(np.isfinite(x).all() for x in gradient(student, teacher))


def test_method_in_numpy():
  aux, run = start(STUDENT, TEACHER, hidden_ratio=0.5)
  params = jax.tree.map(np.asarray, aux.params)
  assert list(params["projections"]) == ["tap1"]  # of the pair with 4 and 6 channels
  students = (
    np.asarray(STUDENT.features[1]).reshape(3, 2, 2, 2, 2, 5).mean((2, 4)),
    np.asarray(STUDENT.features[2]) @ params["projections"]["tap1"]["kernel"][0, 0],
  )

  def normalized(x):
    return x / (np.sqrt((x**2).sum((1, 2), keepdims=True)) + 1e-6)

  expected = 0
  for i, (student, hidden) in enumerate(zip(students, (2, 3), strict=True)):
    teacher = np.asarray(TEACHER.features[i + 1])
    first, second = (params[f"attention{i}"][name] for name in ("linear1", "linear2"))
    assert first["kernel"].shape == (teacher.shape[-1], hidden)
    x = (
      np.maximum(teacher.mean((1, 2)) @ first["kernel"] + first["bias"], 0) @ second["kernel"]
      + second["bias"]
    )
    rho = 1 / (1 + np.exp(-x))
    rho = rho / rho.sum(1, keepdims=True)
    expected = expected + (rho * ((normalized(student) - normalized(teacher)) ** 2).mean((1, 2))).sum(1) / 2
  np.testing.assert_allclose(run(aux.params, STUDENT, TEACHER), expected)


def test_attentions_of_sigmoids_too_small_for_a_number():
  attention = afd.Attention(hidden=2)
  x = jnp.ones((1, 1, 1, 3))
  params = {
    "linear1": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
    "linear2": {"kernel": jnp.full((2, 3), -1e4), "bias": jnp.array([0.0, np.log(2), np.log(5)])},
  }
  np.testing.assert_allclose(attention.apply({"params": params}, x), [[1 / 8, 2 / 8, 5 / 8]], rtol=1e-6)


def test_attention_and_projection_learn():
  aux, run = start(STUDENT, TEACHER)
  gradient = jax.jit(jax.grad(lambda params: run(params, STUDENT, TEACHER).mean()))(aux.params)
  assert all((x != 0).any() for x in jax.tree.leaves(gradient))
