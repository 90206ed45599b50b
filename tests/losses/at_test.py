"""Tests of losses/at.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import at
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(at.loss, static_argnames="p")
gradient_of = jax.jit(
  jax.value_and_grad(lambda s, t, p=2: at.loss((s,), (t,), p=p).sum()), static_argnames="p"
)


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(*features):
  return Outputs(None, None, features, features)


def run(method, student_outputs, teacher):
  aux = method.init(jax.random.key(0), student_outputs, (teacher,), None)
  return method.apply(*aux, student_outputs, (teacher,), Context(None))[0]


def test_worked_by_hand():
  # Two positions. Squares 9 and 16 against 1 and 1; with powers of 1, two channels of means 3 and 4.
  student, teacher = np.array([[[[3.0], [4.0]]]]), np.array([[[[1.0], [-1.0]]]])
  expected = np.mean((np.array([9, 16]) / np.sqrt(337) - np.sqrt(0.5)) ** 2)
  np.testing.assert_allclose(loss((student,), (teacher,)), [expected])
  np.testing.assert_allclose(loss((student, student), (teacher, teacher)), [2 * expected])
  two = np.array([[[[1.0, 5.0], [6.0, 2.0]]]])
  np.testing.assert_allclose(at.attention(two, 1), [[0.6, 0.8]])


def test_a_map_of_zeros_has_no_attention():
  other = arrays(0, 3, 2, 4, 5)
  zeros = jnp.zeros_like(other)
  np.testing.assert_allclose(loss((zeros,), (other,)), 1 / 8)
  assert not np.any(gradient_of(zeros, other)[1])


@pytest.mark.parametrize("who", [0, 1])
def test_the_larger_map_is_averaged(who):
  large, small = arrays(0, 2, 4, 6, 3), arrays(1, 2, 2, 3, 5)
  averaged = large.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
  order = slice(None, None, -1 if who else 1)
  np.testing.assert_allclose(
    loss(*((large,), (small,))[order]), loss(*((averaged,), (small,))[order]), rtol=1e-12
  )


@pytest.mark.parametrize("p", [1, 2, 4])
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e20])
def test_ignores_scale_even_in_float32(p, scale):
  student, teacher = (jnp.abs(arrays(i, 2, 3, 3, 4)).astype(jnp.float32) for i in range(2))
  value, gradient = gradient_of(student, teacher, p=p)
  scaled, scaled_gradient = gradient_of(jnp.float32(scale) * student, teacher, p=p)
  np.testing.assert_allclose(scaled, value, rtol=1e-5)
  np.testing.assert_allclose(scaled_gradient * jnp.float32(scale), gradient, rtol=1e-3, atol=1e-6)


def test_gradient():
  teacher = (arrays(0, 2, 2, 2, 3), arrays(1, 2, 1, 2, 4))
  student = (arrays(2, 2, 4, 4, 2), arrays(3, 2, 1, 2, 4))
  check_grads(lambda *s: loss(s, teacher), student, order=1, modes=["rev"])


def test_reads_all_stages_or_the_named_taps():
  student, teacher = ([arrays(10 * s + i, 2, 2, 2, 3) for i in range(3)] for s in range(2))
  all_layers = loss(tuple(student[1:]), tuple(teacher[1:]))
  np.testing.assert_allclose(run(at.method(), outputs(*student), outputs(*teacher)), all_layers)
  chosen = run(
    at.method(student_layers=(0,), teacher_layers=(-1,), p=4), outputs(*student), outputs(*teacher)
  )
  np.testing.assert_allclose(chosen, loss((student[0],), (teacher[-1],), p=4))


def test_equals_the_term_of_the_survey():
  """In NumPy: positions in a row, rows of length 1, the mean over positions and images at once, the sum over stages."""
  shapes = [(8, 8, 16), (4, 4, 32), (2, 2, 64)]
  stem, *student = [np.asarray(arrays(i, 5, *shape)) for i, shape in enumerate([(8, 8, 64), *shapes])]
  other_stem, *teacher = [
    np.asarray(arrays(9 + i, 5, *shape)) for i, shape in enumerate([(8, 8, 64), *shapes])
  ]

  def attention(feature):
    q = (feature**2).mean(3).reshape(5, -1)
    return q / np.linalg.norm(q, axis=1, keepdims=True)

  pairs = list(zip(student, teacher, strict=True))
  expected = sum(50 * ((attention(s) - attention(t)) ** 2).mean() for s, t in pairs)
  rows = run(at.method(), outputs(stem, *student), outputs(other_stem, *teacher))
  np.testing.assert_allclose(50 * rows.mean(), expected)


def test_refuses_taps_that_are_not_there():
  one = outputs(arrays(0, 1, 2, 2, 3))
  with pytest.raises(ValueError, match="at: needs feature maps after the stem"):
    run(at.method(), one, one)
  with pytest.raises(ValueError, match="at: layer 1 does not exist, the teacher has 1 feature maps"):
    run(at.method(student_layers=(0,), teacher_layers=(1,)), one, one)
