"""Tests of losses/ickd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import ickd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(ickd.loss)


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*features):
  return Outputs(None, None, features, features)


def in_numpy(student, teacher):
  def correlation(x):
    channels = x.reshape(-1, x.shape[-1]).T
    g = channels @ channels.T
    return g / np.maximum(np.linalg.norm(g, axis=1, keepdims=True), 1e-12)

  squares = [(correlation(s) - correlation(t)) ** 2 for s, t in zip(student, teacher, strict=True)]
  return np.array([x.sum() / student.shape[-1] for x in squares])


def test_worked_by_hand():
  # Two equal channels, of rows (1, 1) / sqrt 2, against two that are nowhere active together, of unit rows.
  student = np.array([[1.0, 1.0], [2.0, 2.0]]).reshape(1, 2, 1, 2)
  teacher = np.array([[5.0, 0.0], [0.0, 0.1]]).reshape(1, 1, 2, 2)
  half = np.sqrt(0.5)
  np.testing.assert_allclose(loss(student, teacher), [(half - 1) ** 2 + half**2])


@pytest.mark.parametrize(
  "seed, student, teacher", [(0, (4, 4), (4, 4)), (1, (4, 2), (3, 5)), (2, (1, 1), (8, 8))]
)
def test_equals_numpy(seed, student, teacher):
  s, t = maps(seed, 3, *student, 6), np.maximum(maps(seed + 10, 3, *teacher, 6), 0)
  t[0, ..., 2] = 0  # a channel that is zero everywhere
  np.testing.assert_allclose(loss(s, t), in_numpy(s, t), rtol=1e-10)


def test_ignores_scale_and_the_order_of_positions_but_not_that_of_channels():
  student, teacher = maps(0, 2, 3, 3, 4), maps(1, 2, 3, 3, 4)
  expected = loss(student, teacher)
  np.testing.assert_allclose(loss(7 * student[:, ::-1], teacher), expected, rtol=1e-10)
  np.testing.assert_allclose(loss(3 * teacher, teacher), 0, atol=1e-12)
  assert np.abs(loss(student[..., ::-1], teacher) - expected).max() > 1e-3


def test_the_method_in_numpy_and_the_connector_learns():
  method, student, teacher = ickd.method(), maps(0, 4, 4, 4, 3), maps(1, 4, 2, 2, 5)
  student_outputs, teachers = outputs(maps(2, 4, 8, 8, 2), student), (outputs(teacher),)
  aux = method.init(jax.random.key(0), student_outputs, teachers, None)
  assert aux.params["conv"]["kernel"].shape == (1, 1, 3, 5)

  @jax.jit
  def run(params):
    loss, state = method.apply(params, aux.state, student_outputs, teachers, Context(None))
    return loss.mean(), (loss, state)

  (_, (rows, state)), gradient = jax.value_and_grad(run, has_aux=True)(aux.params)
  x = student @ np.asarray(aux.params["conv"]["kernel"])[0, 0]
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(rows, in_numpy((x - mean) / np.sqrt(var + 1e-5), teacher), rtol=1e-9)
  np.testing.assert_allclose(state["norm"]["mean"], 0.1 * mean, rtol=1e-9)
  assert all(np.any(x) for x in jax.tree.leaves(gradient))
