"""Tests of losses/rkd.py."""

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import rkd

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(rkd.loss, static_argnames="axis_name")
value_and_gradient = jax.jit(jax.value_and_grad(lambda s, t: rkd.loss(s, t).sum()))


def embeddings(seed, b=6, d=4):
  return np.random.default_rng(seed).normal(size=(b, d))


def test_distances_worked_by_hand():
  # On a line: distances 1, 3, 2 of mean 2, and 1, 2, 1 of mean 4/3; all angles are equal.
  student, teacher = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [1.0], [2.0]])
  h = 0.5 * 0.25**2  # differences 1/2 - 3/4, 3/2 - 3/2, 1 - 3/4
  expected = 25.0 * np.array([h, 2 * h, h]) / 3
  np.testing.assert_allclose(loss(student, teacher), expected)
  np.testing.assert_allclose(loss(student, teacher, distance_weight=1.0, angle_weight=7.0), expected / 25)


def test_angles_worked_by_hand():
  # A right isosceles triangle, of cosines 0, sqrt(1/2) and sqrt(1/2), against one of equal sides.
  student = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  teacher = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
  right, other = 0.5 * 0.5**2, 0.5 * (np.sqrt(0.5) - 0.5) ** 2
  # Each angle counts twice (jk and kj) among the nine of its row.
  expected = 50.0 * np.array([right, other, other]) * 2 / 9
  np.testing.assert_allclose(loss(student, teacher, distance_weight=0.0), expected)


def test_large_differences_count_linearly():
  # Distances 0, 1, 1 of mean 2/3 against 1, 1, 0: differences of 3/2, which cost 3/2 - 1/2, and none.
  student, teacher = np.array([[0.0], [0.0], [1.0]]), np.array([[0.0], [1.0], [1.0]])
  rows = loss(student, teacher, distance_weight=1.0, angle_weight=0.0)
  np.testing.assert_allclose(rows, [1 / 3, 2 / 3, 1 / 3])


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(
  "move",
  [
    lambda x: x @ np.linalg.qr(embeddings(7, 4, 4))[0],
    lambda x: x + 3.0,
    lambda x: 1e-3 * x,
    lambda x: 1e3 * x,
    lambda x: np.concatenate([x, np.full_like(x, 2.0)], axis=1),
  ],
  ids=["rotation", "translation", "smaller", "larger", "embedding"],
)
def test_ignores_similarities(move, who):
  student, teacher = embeddings(0), embeddings(1)
  moved = (move(student), teacher) if who == "student" else (student, move(teacher))
  np.testing.assert_allclose(loss(*moved), loss(student, teacher), rtol=1e-8)


def test_zero_where_the_relations_agree():
  np.testing.assert_allclose(loss(2 * embeddings(0) + 1, embeddings(0)), 0, atol=1e-12)


def test_gradient():
  teacher = embeddings(1)
  check_grads(lambda s: loss(s, teacher), (embeddings(0),), order=1)


def test_keeps_its_digits_far_from_the_origin_in_float32():
  student, teacher = embeddings(0).astype(np.float32), embeddings(1).astype(np.float32)
  shifted = student + np.float32(512)  # exact to 6e-5: a Gram matrix there is exact to 0.06
  np.testing.assert_allclose(loss(shifted, teacher), loss(student, teacher), rtol=1e-2)


@pytest.mark.parametrize(
  "student",
  [np.zeros((4, 3)), np.ones((4, 3)), np.repeat(embeddings(0, 2, 3), 2, axis=0), 1e-20 * embeddings(0, 4, 3)],
  ids=["zeros", "equal", "pairs", "tiny"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_embeddings_have_finite_gradients(student, dtype):
  teacher = embeddings(1, 4, 3)
  for s, t in ((student, teacher), (teacher, student), (student, student)):
    value, gradient = value_and_gradient(s.astype(dtype), t.astype(dtype))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_batch_of_one_has_no_relations():
  value, gradient = value_and_gradient(embeddings(0, 1), embeddings(1, 1))
  assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name, value", [("CHUNK", 3), ("ROWS", 3), ("PAIRS", 13)])
@pytest.mark.parametrize("b", [6, 7])
def test_pieces_change_nothing(monkeypatch, b, name, value):
  student, teacher = embeddings(0, b), embeddings(1, b)

  def run():
    def total(s):
      rows = rkd.loss(s, teacher)
      return rows.sum(), rows

    # Compiled anew, because a compiled function remembers the size of its chunks.
    gradient, rows = jax.jit(jax.grad(total, has_aux=True))(student)
    return rows, gradient

  at_once = run()
  monkeypatch.setattr(rkd, name, value)
  for actual, expected in zip(run(), at_once, strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_memory_of_a_large_batch_is_that_of_its_chunks():
  def memory(b):
    student, teacher = (jax.ShapeDtypeStruct((b, d), jnp.float32) for d in (64, 256))
    gradient = jax.jit(jax.value_and_grad(lambda s, t: rkd.loss(s, t).mean()))
    analysis = gradient.lower(student, teacher).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

  one_chunk, four = memory(rkd.CHUNK), memory(4 * rkd.CHUNK)
  assert 4 * rkd.CHUNK >= 256 and four < 2**30
  # Each chunk's angles are 16 times as many: held at once they would take 64 times the memory.
  assert four < 16 * one_chunk


def test_memory_of_a_device_does_not_grow_with_the_square_of_their_number():
  def memory(num_devices, b=256):
    given = [jax.ShapeDtypeStruct((num_devices, b, d), jnp.float32) for d in (64, 256)]

    def mean(s, t):
      return rkd.loss(s, t, axis_name="batch").mean()

    gradient = jax.pmap(jax.grad(mean), axis_name="batch", devices=jax.devices()[:num_devices])
    return gradient.lower(*given).compile().memory_analysis().temp_size_in_bytes

  assert memory(8) < 2.5 * memory(4) < 2**32, "twice the devices; their square would be four times"
