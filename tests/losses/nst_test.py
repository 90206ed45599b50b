"""Tests of losses/nst.py."""

import itertools

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import nst
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(nst.loss)


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def by_loops(student, teacher):
  """The formula, channel pair by channel pair."""

  def channels(feature):
    rows = np.asarray(feature).reshape(len(feature), -1, feature.shape[-1])
    return [[x[:, c] / np.linalg.norm(x[:, c]) for c in range(x.shape[1])] for x in rows]

  def mean_kernel(xs, ys):
    return np.mean([np.dot(x, y) ** 2 for x, y in itertools.product(xs, ys)])

  pairs = zip(channels(student), channels(teacher), strict=True)
  return [mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in pairs]


def test_worked_by_hand():
  # Two positions: the student's channels are (1, 0) and (0, 1), the teacher's is (1, 1).
  student, teacher = np.eye(2).reshape(1, 1, 2, 2), np.ones((1, 1, 2, 1))
  np.testing.assert_allclose(loss((student,), (teacher,)), [1 + 1 / 2 - 2 / 2])
  np.testing.assert_allclose(loss((student,) * 2, (teacher,) * 2), [2 * 0.5])


@pytest.mark.parametrize("seed, student, teacher", [(0, 3, 5), (2, 20, 5), (4, 4, 11)])
def test_equals_the_formula_whichever_matrices_are_smaller(seed, student, teacher):
  student, teacher = arrays(seed, 3, 2, 4, student), arrays(seed + 1, 3, 2, 4, teacher)
  np.testing.assert_allclose(loss((student,), (teacher,)), by_loops(student, teacher), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_zero_for_the_same_channels_of_any_order_scale_and_sign(size):
  teacher = arrays(0, 2, size, size, 6)
  factors = jnp.array([1.0, -2.0, 1e-3, 5.0, 1e3, -1.0])[None, None, None]
  student = jnp.tile((factors * teacher)[..., ::-1], 2)
  np.testing.assert_allclose(loss((student,), (teacher,)), 0, atol=1e-12)


def test_the_larger_map_is_averaged():
  large, small = arrays(0, 2, 4, 6, 3), arrays(1, 2, 2, 3, 5)
  averaged = large.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
  np.testing.assert_allclose(loss((large,), (small,)), loss((averaged,), (small,)), rtol=1e-12)
  np.testing.assert_allclose(loss((small,), (large,)), loss((small,), (averaged,)), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 4])
def test_gradient(size):
  teacher = arrays(0, 2, size, 2, 3)
  check_grads(lambda s: loss((s,), (teacher,)), (arrays(1, 2, size, 2, 4),), order=1, modes=["rev"])


def test_dead_channels_neither_count_nor_learn():
  student, teacher = arrays(0, 2, 3, 3, 4).at[..., 1].set(0), arrays(1, 2, 3, 3, 5)
  value, gradient = jax.jit(jax.value_and_grad(lambda s: loss((s,), (teacher,)).sum()))(student)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  assert not np.any(gradient[..., 1]) and np.all(gradient[..., 0])


@pytest.mark.parametrize("size, channels", [(2, 64), (16, 4)])
def test_no_array_is_larger_than_the_smaller_matrices(size, channels):
  student, teacher = jnp.zeros((3, size, size, channels)), jnp.zeros((3, size, size, channels // 2))
  traced = jax.make_jaxpr(lambda s: nst.loss((s,), (teacher,)))(student)
  sizes = [int(np.prod(v.aval.shape)) for equation in traced.jaxpr.eqns for v in equation.outvars]
  assert max(sizes) <= 3 * max(size**2 * channels, min(size**2, channels) ** 2)


def test_reads_all_stages_or_the_named_taps():
  student, teacher = ([arrays(10 * s + i, 2, 2, 2, 3) for i in range(3)] for s in range(2))
  networks = [Outputs(None, None, tuple(x), ()) for x in (student, teacher)]

  def run(**layers):
    method = nst.method(**layers)
    aux = method.init(jax.random.key(0), networks[0], (networks[1],), None)
    return method.apply(*aux, networks[0], (networks[1],), Context(None))[0]

  np.testing.assert_allclose(run(), loss(tuple(student[1:]), tuple(teacher[1:])))
  expected = loss((student[0],), (teacher[-1],))
  np.testing.assert_allclose(run(student_layers=(0,), teacher_layers=(-1,)), expected)
  with pytest.raises(ValueError, match="nst: layer 3 does not exist, the student has 3 feature maps"):
    run(student_layers=(3,), teacher_layers=(0,))
