"""Tests of losses/reviewkd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import reviewkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def network(seed, *shapes, b=3):
  """Outputs with maps of these (h, w, c), the first of which is the stem."""
  before = tuple(maps(seed + i, b, *shape) for i, shape in enumerate(shapes))
  return Outputs(None, maps(seed + 9, b, shapes[-1][-1]), tuple(np.maximum(x, 0) for x in before), before)


def start(student_outputs, teacher):
  method = reviewkd.method()
  aux = method.init(jax.random.key(0), student_outputs, (teacher,), None)
  return aux, jax.jit(lambda params, x: method.apply(params, aux.state, x, (teacher,), Context(None))[0])


def test_hierarchical_context_worked_by_hand():
  # Mean square 1, and 1/4 of the mean, at half the weight; a map of one position has no coarser level.
  student = np.array([2.0, 0, 0, 0]).reshape(1, 2, 2, 1)
  one = np.full((1, 1, 1, 1), 3.0)
  zeros = [np.zeros_like(student), np.zeros_like(one)]
  np.testing.assert_allclose(reviewkd.loss([student, one], zeros), [(1 + 0.5 * 0.25) / 1.5 + 9])
  np.testing.assert_allclose(reviewkd.loss([student], zeros[:1], levels=()), [1])


def test_levels_of_a_map_that_they_do_not_divide():
  # 4 windows over 5 positions: 0-1, 1-2, 2-3, 3-4.
  x = np.random.default_rng(0).normal(size=(2, 5, 5, 3))
  pairs = (x[:, :-1] + x[:, 1:]) / 2
  fours = (pairs[:, :, :-1] + pairs[:, :, 1:]) / 2

  def square(x):
    return (x**2).mean((1, 2, 3))

  rows = reviewkd.loss([x], [np.zeros_like(x)], levels=(4,))
  np.testing.assert_allclose(rows, (square(x) + 0.5 * square(fours)) / 1.5)


def norm(x):
  return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def conv3(x, kernel):
  h, w = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


def nearest(x, size):
  rows, columns = (np.arange(m) * n // m for m, n in zip(size, x.shape[1:3], strict=True))
  return x[:, rows][:, :, columns]


def test_method_in_numpy():
  # Maps of the student that are larger and smaller than the teacher's, with ratios that are no integers.
  student_outputs, teacher = (
    network(0, (8, 8, 2), (5, 5, 2), (2, 2, 4)),
    network(20, (8, 8, 3), (3, 3, 3), (4, 4, 5)),
  )
  aux, loss = start(student_outputs, teacher)
  students = [np.asarray(x) for x in student_outputs.features[1:]] + [
    np.asarray(student_outputs.embedding)[:, None, None]
  ]
  targets = [np.asarray(x) for x in teacher.preactivations[1:]] + [
    np.asarray(teacher.embedding)[:, None, None]
  ]
  results, g = [], None
  for i in (2, 1, 0):
    params = jax.tree.map(np.asarray, aux.params[f"tap{i}"])
    x = norm(students[i] @ params["conv1"]["conv"]["kernel"][0, 0])
    if g is not None:
      up = nearest(g, x.shape[1:3])
      logits = np.concatenate([x, up], axis=-1) @ params["attention_kernel"] + params["attention_bias"]
      own, others = np.split(1 / (1 + np.exp(-logits)), 2, axis=-1)
      x = own * x + others * up
    g = nearest(x, targets[i].shape[1:3])
    results.insert(0, norm(conv3(g, params["conv2"]["conv"]["kernel"])))
  np.testing.assert_allclose(loss(aux.params, student_outputs), reviewkd.loss(results, targets), rtol=1e-9)


@pytest.mark.parametrize(
  "student, teacher, num_layers",
  [
    (((8, 8, 2), (8, 8, 3), (4, 4, 600)), ((8, 8, 2), (8, 8, 2), (4, 4, 3), (2, 2, 4)), 2),
    (((8, 8, 2), (8, 8, 3), (4, 4, 3), (1, 1, 5)), ((8, 8, 2), (4, 2, 4)), 1),
  ],
)
def test_networks_of_different_depth_are_paired_from_the_end(student, teacher, num_layers):
  student_outputs, teacher = network(0, *student), network(20, *teacher)
  aux, loss = start(student_outputs, teacher)
  assert sorted(aux.params) == [f"tap{i}" for i in range(num_layers + 1)]
  middle = aux.params["tap0"]["conv1"]["conv"]["kernel"].shape
  assert middle == (1, 1, student[-num_layers][-1], min(512, student[-1][-1]))
  assert aux.params["tap0"]["conv2"]["conv"]["kernel"].shape[-1] == teacher.features[-num_layers].shape[-1]
  assert jax.eval_shape(loss, aux.params, student_outputs).shape == (3,)


def test_every_part_and_all_stages_of_the_student_learn():
  student_outputs = network(0, (4, 4, 2), (4, 4, 2), (2, 2, 3), b=6)
  aux, loss = start(student_outputs, network(20, (4, 4, 3), (4, 4, 4), (2, 2, 4), b=6))
  gradients = jax.jit(jax.grad(lambda *xs: loss(*xs).mean(), argnums=(0, 1)))
  by_params, by_learner = gradients(aux.params, student_outputs)
  assert all((x != 0).any() for x in jax.tree.leaves(by_params))
  assert all((x != 0).any() for x in (*by_learner.features[1:], by_learner.embedding))
