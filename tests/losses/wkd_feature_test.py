"""Tests of losses/wkd_feature.py."""

import jax
import numpy as np
import pytest

from method_examples import apply, make_example, shapes
from smskd_jax.losses import wkd_feature
from smskd_jax.losses.contract import Context

pytestmark = pytest.mark.usefixtures("float64")


def reference(student, teacher, mean_weight, grid, eps=1e-5):
  """The formula in NumPy, cell by cell."""
  b = len(student)

  def statistics(x, i, j):
    (h, w) = x.shape[1:3]
    rows = slice(int(np.floor(i * h / grid)), int(np.ceil((i + 1) * h / grid)))
    columns = slice(int(np.floor(j * w / grid)), int(np.ceil((j + 1) * w / grid)))
    cell = x[:, rows, columns].reshape(b, -1, x.shape[-1])
    return cell.mean(1), np.sqrt(cell.var(1, ddof=1) + eps)

  total = np.zeros(b)
  for i in range(grid):
    for j in range(grid):
      (mean_s, std_s), (mean_t, std_t) = statistics(student, i, j), statistics(teacher, i, j)
      total += mean_weight * ((mean_s - mean_t) ** 2).sum(1) + ((std_s - std_t) ** 2).sum(1)
  return total / grid**2


def test_a_value_by_hand():
  # Of two positions: means 1 and 3, variances 2 and 8 (divided by n - 1 = 1).
  student = np.array([0.0, 2.0]).reshape(1, 1, 2, 1)
  teacher = np.array([1.0, 5.0]).reshape(1, 2, 1, 1)
  expected = 3 * (3 - 1) ** 2 + (np.sqrt(8) - np.sqrt(2)) ** 2
  np.testing.assert_allclose(wkd_feature.loss(student, teacher, mean_weight=3.0, eps=1e-12), [expected])
  assert wkd_feature.loss(student, student) == 0


@pytest.mark.parametrize(
  "grid, student_size, teacher_size", [(1, (4, 5), (4, 5)), (3, (7, 5), (7, 5)), (2, (8, 6), (4, 4))]
)
def test_equals_numpy(grid, student_size, teacher_size):
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(3, *student_size, 6)), rng.normal(size=(3, *teacher_size, 6))
  loss = wkd_feature.loss(student, teacher, mean_weight=2.0, grid=grid)
  np.testing.assert_allclose(loss, reference(student, teacher, 2.0, grid), rtol=1e-9)


def test_a_cell_of_one_position_has_no_deviation():
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 1, 1, 3)), rng.normal(size=(2, 1, 1, 3))
  for grid in (1, 2):
    value, gradient = jax.value_and_grad(lambda s, grid=grid: wkd_feature.loss(s, teacher, grid=grid).sum())(
      student
    )
    np.testing.assert_allclose(value, 4 * np.square(student - teacher).sum(), rtol=1e-9)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  "projector, names", [("conv1x1", {"conv", "norm"}), ("bottleneck", {"conv1", "conv2", "conv3"})]
)
def test_the_projector_learns_and_has_the_teacher_s_channels(projector, names):
  student, teachers, batch = make_example("wkd_feature", dtype=np.float64)
  method = wkd_feature.method(projector=projector, grid=2)
  aux = method.init(jax.random.key(0), shapes(student), shapes(teachers), None)
  assert set(aux.params) == names

  def mean_loss(params):
    return apply(method, aux._replace(params=params), student, teachers, batch)[0].mean()

  gradient = jax.jit(jax.grad(mean_loss))(aux.params)
  assert all(np.any(x) for path, x in jax.tree_util.tree_leaves_with_path(gradient) if "kernel" in str(path))


def test_the_layers_are_those_that_it_is_asked_for():
  student, teachers, batch = make_example("wkd_feature", dtype=np.float64)
  method = wkd_feature.method(student_layer=0, teacher_layer=1)
  aux = method.init(jax.random.key(0), shapes(student), shapes(teachers), None)
  assert aux.params["conv"]["kernel"].shape == (1, 1, 3, 7)
  assert apply(method, aux, student, teachers, batch)[0].shape == (8,)


def test_it_decays_to_zero():
  student, teachers, batch = make_example("wkd_feature", dtype=np.float64)
  method = wkd_feature.method(decay_end_epoch=2.0)
  aux = method.init(jax.random.key(0), shapes(student), shapes(teachers), None)
  whole, none = (
    method.apply(*aux, student, teachers, Context(batch, jax.random.key(1), epoch))[0] for epoch in (0.0, 1.0)
  )
  plain = apply(wkd_feature.method(), aux, student, teachers, batch)[0]
  np.testing.assert_allclose(whole, 0.5 * plain, rtol=1e-9)
  assert not np.any(none)
