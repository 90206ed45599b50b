"""Tests of losses/kdsvd.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import kdsvd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(functools.partial(kdsvd.loss, signs="sum"), static_argnames="k")
value_and_gradient = jax.jit(jax.value_and_grad(lambda s, t: kdsvd.loss(s, t, signs="sum").sum()))


def network(seed, channels=(3, 6), sizes=(4, 2), b=2):
  """Maps after a ReLU: more positions than channels, and fewer."""
  rng = np.random.default_rng(seed)
  return tuple(jnp.abs(rng.normal(size=(b, h, h, c))) for h, c in zip(sizes, channels, strict=False))


def rank_one(vector):
  """A map of four positions, all in one direction of the channels."""
  return np.multiply.outer(np.array([[[1.0, 2.0], [0.5, 3.0]]]), np.array(vector))


def loss_in_numpy(student, teacher, k):
  """The formula for one example's matrices [h w, c], by NumPy's decompositions."""
  directions = []
  for s, t in zip(student, teacher, strict=True):
    _, values, ts = np.linalg.svd(t, full_matrices=False)
    vs = np.linalg.svd(s, full_matrices=False)[2][: k + 3]
    ts = ts[:k] * np.where(ts[:k].sum(1, keepdims=True) < 0, -1, 1)
    nearest = [max((v * np.sign(v @ t) for v in vs), key=lambda v, t=t: v @ t) for t in ts]
    directions.append(
      [x * (values[:k] / np.linalg.norm(values[:k]))[:, None] for x in (np.array(nearest), ts)]
    )

  def relation(x, y):
    return np.exp(-((x[:, :, None] - y[:, None, :]) ** 2) / 8)

  neighbours = zip(directions[1:], directions[:-1], strict=True)
  return sum(np.sum((relation(s, s0) - relation(t, t0)) ** 2) for (s, t), (s0, t0) in neighbours)


def test_worked_by_hand():
  # Directions (1, 0) and (0.6, 0.8) against (1, 0) twice: two entries of the relation differ with each row.
  student = rank_one([5.0, 0.0]), rank_one([0.6, 0.8])
  teacher = rank_one([1.0, 0.0]), rank_one([2.0, 0.0])

  def e(x):
    return np.exp(-(x**2) / 8)

  relation = np.array([[e(0.6 - 1), e(0.6)], [e(0.8 - 1), e(0.8)]])
  expected = np.sum((relation - np.array([[1, e(1)], [e(1), 1]])) ** 2)
  np.testing.assert_allclose(loss(student, teacher), [expected])


@pytest.mark.parametrize("seed, k, channels", [(0, 1, (3, 6)), (1, 2, (3, 6)), (2, 1, (3, 5, 6))])
def test_equals_the_formula(seed, k, channels):
  student, teacher = network(seed, channels, (4, 2, 2)), network(seed + 10, channels, (4, 4, 2))

  def rows(maps, i):
    return [np.asarray(x[i]).reshape(-1, x.shape[-1]) for x in maps]

  expected = [loss_in_numpy(rows(student, i), rows(teacher, i), k) for i in range(2)]
  np.testing.assert_allclose(loss(student, teacher, k=k), expected, rtol=1e-8)


@pytest.mark.parametrize("size, channels", [(4, 5), (2, 9), (3, 9), (1, 4)])
def test_right_vectors(size, channels):
  (feature,) = network(0, (channels,), (size,))
  values, vectors = kdsvd.right_vectors(feature, 3)
  expected = np.linalg.svd(np.asarray(feature).reshape(2, -1, channels), full_matrices=False)
  m = min(3, size**2, channels)
  np.testing.assert_allclose(values / values[:, :1], expected[1][:, :m] / expected[1][:, :1])
  np.testing.assert_allclose(np.abs(vectors), np.abs(expected[2][:, :m]), rtol=1e-7, atol=1e-10)


def test_ignores_scales_signs_and_where_things_are():
  student, teacher = network(0), network(1)
  moved = tuple(-1e3 * x[:, ::-1] for x in student), tuple(1e-3 * x[:, :, ::-1] for x in teacher)
  np.testing.assert_allclose(loss(*moved), loss(student, teacher), rtol=1e-8)
  np.testing.assert_allclose(loss(student, student), 0, atol=1e-20)


def test_signs_of_the_decomposition():
  student, teacher = network(0), network(1)
  programs = [
    jax.jit(functools.partial(kdsvd.loss, signs=signs)).lower(student, teacher).as_text()
    for signs in ("sum", "svd")
  ]
  assert ["gesdd" in program for program in programs] == [False, True]


@pytest.mark.parametrize("seed", range(3))
def test_gradient(seed):
  student, teacher, direction = network(seed), network(seed + 10), network(seed + 20)
  _, gradient = value_and_gradient(student, teacher)

  def moved(step):
    return loss(jax.tree.map(lambda x, d: x + step * d, student, direction), teacher).sum()

  slope = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
  np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-6)


def test_gradient_in_float32():
  student, teacher = network(0), network(1)
  _, expected = value_and_gradient(student, teacher)
  single = jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher))
  _, gradient = value_and_gradient(*single)
  for ours, exact in zip(gradient, expected, strict=True):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-4 * np.abs(exact).max())


def repeated(c):
  """Maps of which all singular values are equal."""
  return np.eye(4, c).reshape(1, 2, 2, c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
  "first, second",
  [
    (np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 6))),
    (np.ones((1, 2, 2, 3)), np.ones((1, 2, 2, 6))),
    (repeated(3), repeated(6)),
    (rank_one([1.0, 0.0, 0.0]), rank_one([0.0, 1.0, 2.0, 0.0, 0.0, 0.0])),
    (1e-6 * repeated(3), 1e4 * np.ones((1, 2, 2, 6))),
  ],
  ids=["zeros", "constant", "repeated", "rank one", "tiny and large"],
)
def test_gradient_is_finite_where_vectors_are_not_unique(first, second, dtype):
  degenerate = first.astype(dtype), second.astype(dtype)
  other = tuple(x.astype(dtype) for x in network(0, (3, 6), (2, 2), b=1))
  for student, teacher in ((degenerate, other), (other, degenerate), (degenerate, degenerate)):
    value, gradient = value_and_gradient(student, teacher)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradient)


def test_gradient_is_bounded_where_vectors_are_nearly_not_unique():
  # Gaps of 1e-12 between the singular values, whose inverse the derivative has.
  other = network(0, (3, 6), (2, 2), b=1)
  noise = network(1, (3, 6), (2, 2), b=1)
  nearly = tuple(repeated(x.shape[-1]) + 1e-12 * x for x in noise)
  _, gradient = value_and_gradient(nearly, other)
  assert 0 < max(np.abs(g).max() for g in gradient) < 1e7


def test_other_channels_are_projected_by_convolutions_that_learn():
  maps = (network(0), network(1, (3, 9), (8, 2)))
  stems = (np.zeros((2, 8, 8, 2)),) * 2
  student_outputs, teacher = (
    Outputs(None, None, (stem, *x), ()) for stem, x in zip(stems, maps, strict=True)
  )
  method = kdsvd.method()
  aux = method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, (teacher,))), None)
  weights = {name: x["kernel"][0, 0] for name, x in aux.params.items()}
  assert {name: x.shape for name, x in weights.items()} == {"conv_1": (6, 9)}

  def mean_loss(params):
    value, _ = method.apply(params, aux.state, student_outputs, (teacher,), Context(None))
    return value.mean(), value

  gradient, value = jax.jit(jax.grad(mean_loss, has_aux=True))(aux.params)
  projected = maps[0][0], maps[0][1] @ weights["conv_1"]
  np.testing.assert_allclose(value, loss(projected, maps[1]), rtol=1e-8)
  assert all(np.any(g) for g in jax.tree.leaves(gradient))
  with pytest.raises(
    ValueError, match=r"kdsvd: the student's layer 2 is \[2, 2, 6\], the teacher's layer 2 \[2, 2, 9\]"
  ):
    kdsvd.method(project=False).init(jax.random.key(0), student_outputs, (teacher,), None)
