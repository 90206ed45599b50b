"""Tests of losses/skd.py."""

import jax
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import kd, skd

loss = jax.jit(skd.loss, static_argnames=("public_code", "axis_name"))
direction_loss = jax.jit(skd.direction_loss, static_argnames=("divide_by_classes", "axis_name"))
value_and_gradient = jax.jit(
  jax.value_and_grad(lambda s, t, public_code=False: skd.loss(s, t, public_code=public_code).mean()),
  static_argnames="public_code",
)


def networks(seed=0, b=6, k=5):
  return np.random.default_rng(seed).normal(size=(2, b, k))


def direction_by_formula(student, teacher, tikhonov=0.1, scale=1.0):
  units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (student, teacher)]
  difference = scale * (units[0] @ units[0].T - units[1] @ units[1].T)
  inverse = np.linalg.inv(np.cov(difference, rowvar=False) + tikhonov * np.eye(len(difference)))
  return np.sqrt(np.einsum("bi,ij,bj->b", difference, inverse, difference))


@pytest.mark.usefixtures("float64")
def test_direction_worked_by_hand():
  # Two examples at a right angle for the student, parallel for the teacher: the rows of D are (0, -1) and (-1, 0).
  # Their covariance [[1/2, -1/2], [-1/2, 1/2]] has the eigenvalue 1 for (1, -1), and 0 for (1, 1).
  student, teacher = np.array([[2.0, 0.0], [0.0, 5.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
  expected = np.sqrt(0.5 / 1.1 + 0.5 / 0.1)
  np.testing.assert_allclose(direction_loss(student, teacher), [expected, expected])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed, b, k, tikhonov", [(0, 6, 5, 0.1), (1, 3, 7, 1e-3), (2, 9, 3, 1.0)])
def test_equals_the_formula(seed, b, k, tikhonov):
  student, teacher = networks(seed, b, k)
  direction = direction_by_formula(student, teacher, tikhonov)
  np.testing.assert_allclose(direction_loss(student, teacher, tikhonov=tikhonov), direction, rtol=1e-9)
  rows = loss(student, teacher, tikhonov=tikhonov, temperature=3.0)
  np.testing.assert_allclose(rows, kd.loss(student, teacher, temperature=3.0) / 9 + direction, rtol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("percentile", [50.0, 30.0, 100.0])
def test_the_public_code_multiplies_each_term_by_a_fraction(percentile):
  student, teacher = networks(3, 8, 5)
  p = np.exp(teacher) / np.exp(teacher).sum(axis=1, keepdims=True)
  of_examples, of_classes = (
    np.mean(x <= np.percentile(x, percentile)) for x in (p.max(axis=1), p.sum(axis=0))
  )
  assert percentile < 100 or of_examples == of_classes == 1
  direction = direction_by_formula(student, teacher, scale=1 / 5)
  rows = loss(student, teacher, public_code=True, percentile=percentile)
  np.testing.assert_allclose(
    rows, of_examples * kd.loss(student, teacher) + of_classes * direction, rtol=1e-9
  )


@pytest.mark.usefixtures("float64")
def test_directions_ignore_the_lengths_of_logits_and_rotations():
  student, teacher = networks()
  lengths = np.random.default_rng(1).uniform(0.1, 9, (6, 1))
  rotation = np.linalg.qr(networks(2, 5, 5)[0])[0]
  expected = direction_loss(student, teacher)
  np.testing.assert_allclose(direction_loss(lengths * student @ rotation, teacher), expected, rtol=1e-8)


@pytest.mark.usefixtures("float64")
def test_gradient():
  student, teacher = networks()
  check_grads(lambda s: skd.loss(s, teacher), (student,), order=1)


@pytest.mark.parametrize("public_code", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_where_the_networks_agree_the_gradient_is_finite(dtype, public_code):
  with jax.enable_x64(dtype == np.float64):
    same = networks(0, 6, 5)[0].astype(dtype)
    value, gradient = value_and_gradient(same, same, public_code=public_code)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    # A norm has a slope of 1 next to zero, where rounding errors are.
    for student in (same, same * (1 + dtype(1e-6))):
      _, gradient = value_and_gradient(student, same, public_code=public_code)
      assert np.isfinite(gradient).all() and np.abs(gradient).max() < 10


@pytest.mark.usefixtures("float64")
def test_rows_of_equal_directions_have_a_gradient_of_zero():
  student = np.eye(4, 5)
  gradient = jax.grad(lambda s: skd.direction_loss(s, 2 * student).sum())(student)
  assert (gradient == 0).all()


def test_a_row_of_zeros_and_equal_rows_have_finite_gradients():
  student, teacher = networks(0, 4, 3).astype(np.float32)
  for logits in (np.zeros_like(student), np.ones_like(student), np.eye(4, 3, dtype=np.float32)):
    for s, t in ((logits, teacher), (student, logits)):
      value, gradient = value_and_gradient(s, t)
      assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.usefixtures("float64")
def test_a_batch_of_one_has_no_directions():
  student, teacher = networks(0, 1)
  np.testing.assert_array_equal(direction_loss(student, teacher), [0])
  np.testing.assert_allclose(loss(student, teacher), kd.loss(student, teacher) / 16)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("public_code", [False, True])
def test_two_devices_have_the_loss_of_the_whole_batch(public_code):
  student, teacher = networks(4, 8)

  def on_one_device(s, t):
    return skd.loss(s, t, public_code=public_code, axis_name="batch")

  both = jax.pmap(on_one_device, axis_name="batch", devices=jax.devices()[:2])
  rows = both(student.reshape(2, 4, 5), teacher.reshape(2, 4, 5))
  np.testing.assert_allclose(rows.reshape(8), loss(student, teacher, public_code=public_code), rtol=1e-10)
