"""Tests of data/enumerable_views.py: the numbers of views, and the views of the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photographs
from smskd_jax.data import augment, enumerable_views, views

INDEX = np.arange(24, dtype=np.int32) * 7


@pytest.mark.parametrize("options", [{}, {"flip": False}, {"padding": 2}, {"padding": 0}])
def test_the_numbers_drawn_are_those_of_the_usual_draws(options):
  of, image = enumerable_views.crop_flip(**options), photographs.rgb()
  for seed in range(3):
    key = jax.random.key(seed)
    number = of.sample_index(key, INDEX)
    assert number.dtype == jnp.int32 and (number >= 0).all() and (number < of.num_views).all()
    expected = augment.crop_flip(key, image, INDEX, **{"padding": 4, "flip": True} | options)
    np.testing.assert_array_equal(of.render(image, INDEX, number), expected)


def test_every_view_in_numpy():
  image = photographs.rgb()[:1]
  of, h, w = enumerable_views.crop_flip(padding=1), *image.shape[1:3]
  padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
  assert of.num_views == 18
  for number in range(18):
    y, x, flipped = number // 6, number // 2 % 3, number % 2
    expected = padded[y : y + h, x : x + w]
    (found,) = of.render(image, INDEX[:1], jnp.full(1, number))
    np.testing.assert_array_equal(found, expected[:, ::-1] if flipped else expected)


@pytest.mark.parametrize("count", [1, 4, 16, 100, 161])
def test_some_of_the_views_are_different_ones_and_the_same_each_time(count):
  image = np.arange(32 * 32, dtype=np.int32).reshape(1, 32, 32, 1).astype(np.uint8).repeat(3, axis=-1)
  image[..., 1] = np.arange(32)[:, None] * 7
  of, every = enumerable_views.crop_flip(num_views=count), enumerable_views.crop_flip()
  assert of.num_views == count
  shown = lambda of, numbers, index: np.asarray(
    of.show(image.repeat(len(numbers), 0), np.full(len(numbers), index, np.int32), jnp.asarray(numbers))
  ).reshape(len(numbers), -1)
  all_views = {x.tobytes() for x in shown(every, range(162), 5)}
  some = {x.tobytes() for x in shown(of, range(count), 5)}
  assert len(all_views) == 162 and len(some) == count and some <= all_views
  if 1 < count < 100:
    assert some != {x.tobytes() for x in shown(of, range(count), 6)}, "each image has views of its own"
  drawn = np.concatenate([of.sample_index(jax.random.key(seed), INDEX) for seed in range(60)])
  assert drawn.min() == 0 and drawn.max() >= min(count - 1, 150)


def test_the_view_of_a_name_is_that_of_its_number():
  image, key = photographs.rgb(), jax.random.key(3)
  of = enumerable_views.crop_flip(num_views=9)
  seen = views.make_view("crop_flip", {"crop_flip": {"num_views": 9}})(key, image, INDEX)
  np.testing.assert_array_equal(seen, of.render(image, INDEX, of.sample_index(key, INDEX)))
  plain = enumerable_views.plain()
  np.testing.assert_array_equal(plain.render(image, INDEX, plain.sample_index(key, INDEX)), image)


@pytest.mark.parametrize("count", [-1, 163])
def test_refuses_views_that_there_are_not(count):
  with pytest.raises(
    ValueError, match=f"crop_flip.views: {count}; a padding of 4 gives 162, and 0 means all"
  ):
    enumerable_views.crop_flip(num_views=count)
