"""Tests of data/erasing.py."""

import jax
import numpy as np
import pytest

import photographs
from smskd_jax.data import augment, erasing

KEY = jax.random.key(3)
WHITE = np.full((4000, 32, 24, 1), 255, np.uint8)
INDEX = np.arange(4000)


def boxes(result, level):
  """Top, left, height and width of the rectangle that has a level; asserts that it is a rectangle."""
  hidden = np.asarray(result)[..., 0] == level
  rows, columns = hidden.any(2), hidden.any(1)
  np.testing.assert_array_equal(hidden, rows[:, :, None] & columns[:, None])
  return rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)


@pytest.mark.parametrize("size", [1, 8, 9])
def test_cutout_is_a_square_centred_at_any_pixel(size):
  result = jax.jit(lambda x: erasing.cutout(KEY, x, INDEX, size=size, fill=0))(WHITE)
  top, left, height, width = boxes(result, 0)
  assert height.max() == width.max() == size
  y, x = np.floor(np.asarray(augment.uniform_per_example(KEY, INDEX, 2)) * [32, 24]).astype(int).T
  np.testing.assert_array_equal(top, np.maximum(y - size // 2, 0))
  np.testing.assert_array_equal(left + width, np.minimum(x - size // 2 + size, 24))
  np.testing.assert_allclose([y.mean(), x.mean()], [15.5, 11.5], atol=0.6)
  assert (height < size).any() == (size > 1)


def test_cutout_fills_with_a_colour():
  image = np.zeros((4, 8, 8, 3), np.uint8)
  result = np.asarray(erasing.cutout(KEY, image, np.arange(4), size=16, fill=(1, 2, 3)))
  assert {tuple(pixel) for pixel in result.reshape(-1, 3)} <= {(1, 2, 3), (0, 0, 0)}


def test_random_erasing_has_the_given_areas_and_shapes():
  options = {"probability": 0.7, "min_area": 0.1, "max_area": 0.3, "min_aspect": 0.5, "fill": 0}
  result = jax.jit(lambda x: erasing.random_erasing(KEY, x, INDEX, **options))(WHITE)
  top, left, height, width = boxes(result, 0)
  erased = height > 0
  assert abs(erased.mean() - 0.7) < 0.03
  area, aspect = (height * width / (32 * 24))[erased], (height / np.maximum(width, 1))[erased]
  assert 0.09 < area.min() < 0.11 and 0.28 < area.max() < 0.32
  np.testing.assert_allclose(area.mean(), 0.2, atol=0.01)
  assert 0.45 < aspect.min() < 0.55 and 1.8 < aspect.max() < 2.2
  np.testing.assert_allclose((top / (32 - height))[erased].mean(), 0.5, atol=0.03)
  np.testing.assert_allclose((left / (24 - width))[erased].mean(), 0.5, atol=0.03)


def test_random_erasing_resamples_rectangles_that_do_not_fit():
  options = {"probability": 1.0, "min_area": 0.7, "max_area": 0.8, "min_aspect": 0.3, "fill": 0}
  result = jax.jit(lambda x: erasing.random_erasing(KEY, x, INDEX, **options))(WHITE)
  *_, height, width = boxes(result, 0)
  erased = height > 0
  assert 0.9 < erased.mean() < 1
  assert (height < 32).all() and (width < 24).all()
  assert ((height * width)[erased] > 0.65 * 32 * 24).all()


def test_random_levels_are_uniform_and_differ_by_example():
  image = photographs.rgb()
  options = {"probability": 1.0, "min_area": 0.4, "max_area": 0.4}
  erase = jax.jit(lambda image: erasing.random_erasing(KEY, image, np.arange(len(image)), **options))
  result = np.asarray(erase(image))
  levels = result[result != image]
  np.testing.assert_allclose([levels.mean(), levels.std()], [127.5, 73.9], atol=2)
  assert not np.array_equal(levels[:500], levels[500:1000])


def test_random_square_equals_its_definition():
  result = jax.jit(lambda x: erasing.random_square(KEY, x, INDEX))(WHITE)
  uniforms = np.asarray(augment.uniform_per_example(KEY, INDEX, 3), float)
  _, _, height, width = boxes(result, 123)
  for got, at, n in ((height, 1, 32), (width, 2, 24)):
    side = 0.5 * 24 * uniforms[:, 0]
    first = np.trunc(np.maximum(uniforms[:, at] * n - side / 2, 0))
    expected = np.minimum(np.trunc(np.minimum(first + side, n)), n - 1) - first + 1
    assert np.mean(got != expected) < 1e-3  # single precision


@pytest.mark.parametrize(
  ("function", "options", "message"),
  [
    (erasing.cutout, {"size": 0}, "cutout: size must be a positive integer"),
    (erasing.random_erasing, {"probability": 1.5}, "probability must be a number from 0 to 1"),
    (erasing.random_erasing, {"min_area": 0.5, "max_area": 0.4}, "min_area <= max_area"),
    (erasing.random_erasing, {"min_aspect": 2.0}, "min_aspect must be above 0 and at most 1"),
  ],
)
def test_refuses_bad_options(function, options, message):
  with pytest.raises(ValueError, match=message):
    function(KEY, WHITE[:2], INDEX[:2], **options)
