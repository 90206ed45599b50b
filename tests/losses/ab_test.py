"""Tests of losses/ab.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import ab
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(ab.loss)


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(*preactivations):
  return Outputs(None, None, tuple(map(jax.nn.relu, preactivations)), preactivations)


def started(student_outputs, teacher, **hyper_parameters):
  method = ab.method(**hyper_parameters)
  return method, method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, (teacher,))), None)


def by_boundaries(student, teacher, margin=1.0):
  """Sum over a map, in the words of the paper: which neurons lie on the wrong side of which boundary."""
  off_but_on = (student > -margin) & (teacher <= 0)
  on_but_off = (student <= margin) & (teacher > 0)
  return ((student + margin) ** 2 * off_but_on + (student - margin) ** 2 * on_but_off).sum((1, 2, 3))


def test_worked_by_hand():
  student = np.array([0.5, -2.0, 3.0, 0.2, 1.5, -1.5]).reshape(1, 1, 6, 1)
  teacher = np.array([1.0, 1.0, -1.0, 0.0, 0.1, -0.1]).reshape(1, 1, 6, 1)
  expected = 0.25 + 9 + 16 + 1.44 + 0 + 0
  np.testing.assert_allclose(loss((student,), (teacher,)), [3e-3 * expected])
  zero = np.full_like(student, -1.0)
  both = loss((student, zero), (teacher, zero)), loss((zero, student), (zero, teacher))
  np.testing.assert_allclose(both, [[1.5e-3 * expected], [3e-3 * expected]])


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_equals_the_formula(margin):
  student, teacher = ([arrays(10 * s + i, 3, 4, 2, 5) for i in range(3)] for s in range(2))
  values = [by_boundaries(s, t, margin) for s, t in zip(student, teacher, strict=True)]
  expected = 3e-3 * (values[0] / 4 + values[1] / 2 + values[2])
  np.testing.assert_allclose(loss(tuple(student), tuple(teacher), margin=margin), expected)


def test_gradient():
  teacher = arrays(0, 2, 2, 3, 4)
  check_grads(lambda s: loss((s,), (teacher,)), (arrays(1, 2, 2, 3, 4),), order=1, modes=["rev"])


def test_only_the_sign_of_the_teacher_counts():
  student, teacher = arrays(0, 2, 3, 3, 4), arrays(1, 2, 3, 3, 4)
  np.testing.assert_array_equal(loss((student,), (teacher,)), loss((student,), (1e3 * teacher,)))


def test_equal_shapes_need_no_connector():
  student, teacher = ([arrays(10 * s + i, 3, 4, 4, 5) for i in range(3)] for s in range(2))
  student_outputs, other = outputs(*student), outputs(*teacher)
  method, aux = started(student_outputs, other)
  assert not jax.tree.leaves(aux)
  value, _ = method.apply(*aux, student_outputs, (other,), Context(None))
  np.testing.assert_allclose(value, loss(tuple(student[1:]), tuple(teacher[1:])))


@pytest.mark.parametrize(
  "student, teacher", [((4, 4, 3), (4, 4, 5)), ((4, 4, 3), (2, 2, 5)), ((2, 2, 3), (4, 4, 3))]
)
def test_other_shapes_are_connected_by_a_convolution_and_batch_norm(student, teacher):
  student_outputs, other = outputs(arrays(0, 6, *student)), outputs(arrays(1, 6, *teacher))
  method, aux = started(student_outputs, other, student_layers=(0,), teacher_layers=(-1,))

  def average(x, size):
    b, h, w, c = x.shape
    return x.reshape(b, size, h // size, size, w // size, c).mean((2, 4))

  def mean_loss(params):
    return method.apply(params, aux.state, student_outputs, (other,), Context(None))[0].mean()

  value, state = jax.jit(method.apply)(*aux, student_outputs, (other,), Context(None))
  size, weights = min(student[0], teacher[0]), aux.params["connector_0"]["conv"]["kernel"]
  assert weights.shape == (1, 1, student[-1], teacher[-1])
  x = average(student_outputs.preactivations[0], size) @ weights[0, 0]
  x = (x - x.mean((0, 1, 2))[None, None, None]) / np.sqrt(x.var((0, 1, 2)) + 1e-5)[None, None, None]
  expected = 3e-3 * by_boundaries(x, average(other.preactivations[0], size))
  np.testing.assert_allclose(value, expected, rtol=1e-8)
  assert jax.tree.structure(state) == jax.tree.structure(aux.state)
  assert all(np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(mean_loss))(aux.params)))
