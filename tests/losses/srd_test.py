"""Tests of losses/srd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import srd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def embeddings(seed, b=6, d=4):
  return np.random.default_rng(seed).normal(size=(b, d))


def outputs(embedding):
  return Outputs(None, embedding, (), ())


def in_numpy(student, teacher, exponent, eps):
  def normalize(x):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps)

  return np.log((np.abs(normalize(student) - normalize(teacher)) ** exponent).sum())


def test_worked_by_hand():
  # Columns (1, -1) against (-1, 1): of variance 1 both, two differences of 2, so that the sum is 2 * 2^4.
  student = np.array([[3.0], [1.0]])
  np.testing.assert_allclose(srd.loss(student, -student, eps=1e-12), [np.log(32)] * 2, rtol=1e-10)


@pytest.mark.parametrize("exponent, eps", [(4.0, 1e-4), (1.0, 0.5), (2.5, 1e-5)])
def test_equals_numpy(exponent, eps):
  student, teacher = embeddings(0), embeddings(1)
  rows = srd.loss(student, teacher, exponent=exponent, eps=eps)
  np.testing.assert_allclose(rows, [in_numpy(student, teacher, exponent, eps)] * 6, rtol=1e-10)


def test_ignores_shift_and_scale_and_has_a_floor_with_a_finite_gradient():
  teacher = embeddings(1)
  value, gradient = jax.value_and_grad(lambda s: srd.loss(s, teacher, eps=1e-12).mean())(5 * teacher + 3)
  np.testing.assert_allclose(value, np.log(1e-12), rtol=1e-6)
  assert np.isfinite(gradient).all()
  assert srd.loss(teacher[:, ::-1], teacher)[0] > 0


def test_the_projector_is_always_there_and_learns():
  method, student, teacher = srd.method(), embeddings(0, 6, 4), embeddings(1, 6, 4)
  aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (outputs(student), (outputs(teacher),))), None)
  linear = jax.tree.map(np.asarray, aux.params["linear"])
  assert linear["kernel"].shape == (4, 4)

  def mean_loss(params):
    return method.apply(params, aux.state, outputs(student), (outputs(teacher),), Context(None))[0].mean()

  value, gradient = jax.value_and_grad(mean_loss)(aux.params)
  projected = student @ linear["kernel"] + linear["bias"]
  np.testing.assert_allclose(value, in_numpy(projected, teacher, 4.0, 1e-4), rtol=1e-9)
  assert mean_loss(jax.tree.map(lambda p, g: p - 0.01 * g, aux.params, gradient)) < value
