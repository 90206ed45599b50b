"""Tests of losses/itrd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import itrd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def embeddings(seed, b=6, d=4):
  return np.random.default_rng(seed).normal(size=(b, d))


def outputs(embedding):
  return Outputs(None, embedding, (), ())


def correlation_in_numpy(student, teacher, alpha):
  def z(x):
    return (x - x.mean(0)) / x.std(0, ddof=1)

  c = (z(student) * z(teacher)).mean(0)
  return np.log2((np.abs(c - 1) ** (2 * alpha)).sum())


def mutual_in_numpy(student, teacher):
  def gram(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T

  joint = gram(student) * gram(teacher)
  return sum(sign * np.square(g / np.trace(g)).sum() for sign, g in ((1, gram(student)), (-1, joint)))


def test_worked_by_hand():
  # Two examples: z is (1, -1) / sqrt 2 and c = -1/2 of opposite columns, so that (3/2)^2 for alpha = 1.
  student = np.array([[3.0], [1.0]])
  np.testing.assert_allclose(itrd.correlation_loss(student, -student, alpha=1.0), [np.log2(2.25)] * 2)
  # Equal directions, all of G_s is 1/2 and its square sums to 1; of orthogonal ones in the teacher 1/2 is left.
  rows = itrd.mutual_loss(np.ones((2, 1)), np.eye(2))
  np.testing.assert_allclose(rows, [0.5, 0.5])


@pytest.mark.parametrize("seed, alpha", [(0, 1.01), (1, 1.5), (2, 0.5)])
def test_equals_numpy(seed, alpha):
  student, teacher = embeddings(seed), embeddings(seed + 10)
  rows = itrd.correlation_loss(student, teacher, alpha=alpha)
  np.testing.assert_allclose(rows, [correlation_in_numpy(student, teacher, alpha)] * 6, rtol=1e-10)
  wide = embeddings(seed + 20, d=9)
  np.testing.assert_allclose(
    itrd.mutual_loss(student, wide).mean(), mutual_in_numpy(student, wide), rtol=1e-10
  )


def test_equal_embeddings_leave_the_floor_of_the_correlation():
  x = embeddings(0)
  np.testing.assert_allclose(itrd.correlation_loss(x, x, alpha=1.0), [np.log2(4 / 36)] * 6, rtol=1e-9)


def test_a_constant_column_has_correlation_zero_and_no_gradient():
  student, teacher = embeddings(0), embeddings(1)
  student[:, 1] = 0.3
  value, gradient = jax.value_and_grad(lambda s: itrd.correlation_loss(s, teacher, alpha=1.0).mean())(student)
  others = [0, 2, 3]
  sum_of_others = 2 ** correlation_in_numpy(student[:, others], teacher[:, others], 1.0)
  np.testing.assert_allclose(value, np.log2(sum_of_others + 1), rtol=1e-9)
  assert (gradient[:, 1] == 0).all() and (gradient[:, 0] != 0).all()


@pytest.mark.parametrize("width", [4, 7])
def test_the_method_in_numpy(width):
  """The mutual loss reads the projected embedding only where the widths differ."""
  student, teacher = embeddings(0, 6, 4), embeddings(1, 6, width)
  method = itrd.method(alpha=1.5, correlation_weight=0.5, mutual_weight=3.0)
  aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (outputs(student), (outputs(teacher),))), None)
  linear = jax.tree.map(np.asarray, aux.params["linear"])
  projected = student @ linear["kernel"] + linear["bias"]
  rows, _ = method.apply(*aux, outputs(student), (outputs(teacher),), Context(None))
  mutual = mutual_in_numpy(student if width == 4 else projected, teacher)
  expected = 0.5 * correlation_in_numpy(projected, teacher, 1.5) + 3 * mutual
  np.testing.assert_allclose(rows.mean(), expected, rtol=1e-9)
