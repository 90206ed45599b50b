"""Tests of data/augment.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.data import augment

KEY = jax.random.key(7)

crop_flip = jax.jit(augment.crop_flip, static_argnames=("padding", "flip"))
sample = jax.jit(augment.sample_crop_flip, static_argnames="padding")


def images(n, h=8, w=9, c=3):
  return np.random.default_rng(0).integers(0, 256, (n, h, w, c), np.uint8)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_flip_equals_numpy_for_the_same_samples(padding, flip):
  image, index = images(32), np.arange(100, 132)
  view = crop_flip(KEY, image, index, padding=padding, flip=flip)
  corners, flipped = (np.asarray(x) for x in sample(KEY, index, padding))
  assert view.dtype == jnp.uint8 and view.shape == image.shape
  for i, (y, x) in enumerate(corners):
    padded = np.pad(image[i], ((padding, padding), (padding, padding), (0, 0)))
    expected = padded[y : y + 8, x : x + 9]
    np.testing.assert_array_equal(view[i], expected[:, ::-1] if flip and flipped[i] else expected)


def test_no_padding_and_no_flip_is_the_identity():
  image = images(4)
  np.testing.assert_array_equal(crop_flip(KEY, image, np.arange(4), padding=0, flip=False), image)


def test_all_views_occur_equally_often():
  n = 81 * 2 * 100
  corners, flipped = sample(KEY, np.arange(n), 4)
  code = np.asarray(corners[:, 0] * 18 + corners[:, 1] * 2 + flipped)
  counts = np.bincount(code, minlength=162)
  assert len(counts) == 162
  chi_square = np.sum((counts - 100) ** 2 / 100)
  assert chi_square < 234  # exceeded by one fair sample in ten thousand, at 161 degrees of freedom


def test_a_view_depends_on_the_index_of_the_example_alone():
  image, index = images(12), np.arange(12) * 5
  whole = crop_flip(KEY, image, index, padding=4, flip=True)
  order = np.random.default_rng(1).permutation(12)
  halves = [crop_flip(KEY, image[part], index[part], padding=4, flip=True) for part in np.split(order, 2)]
  np.testing.assert_array_equal(np.concatenate(halves), np.asarray(whole)[order])


def test_another_key_gives_another_view():
  image, index = images(16), np.arange(16)
  views = [crop_flip(jax.random.key(seed), image, index, padding=4, flip=True) for seed in (0, 1)]
  assert (views[0] != views[1]).any()


def test_crop_flip_and_normalize_run_under_strict_promotion():
  image, index = images(8), jnp.arange(8, dtype=jnp.int32)
  plain = crop_flip(KEY, image, index, padding=2, flip=True)
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    strict = jax.jit(lambda x, i: augment.crop_flip(KEY, x, i, padding=2, flip=True))(image, index)
    jax.jit(lambda x: augment.normalize(x, (0.5,) * 3, (0.2,) * 3))(image)
  np.testing.assert_array_equal(strict, plain)


def test_normalize_equals_its_formula():
  image = np.uint8([0, 51, 255]).reshape(1, 1, 1, 3)
  expected = [(0 - 0.5) / 0.1, (0.2 - 0.5) / 0.2, (1 - 0.5) / 0.4]
  np.testing.assert_allclose(
    augment.normalize(image, (0.5,) * 3, (0.1, 0.2, 0.4)).ravel(), np.float32(expected), rtol=1e-6
  )


def test_normalize_to_half_precision_rounds_once():
  image = images(2)
  single = augment.normalize(image, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
  half = augment.normalize(image, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), jnp.bfloat16)
  assert single.dtype == jnp.float32 and half.dtype == jnp.bfloat16
  np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))


def test_normalized_training_set_has_zero_mean_and_unit_std():
  from smskd_jax import data

  loaded = data.load("digits")
  normal = np.asarray(augment.normalize(loaded.train.image, loaded.mean, loaded.std), np.float64)
  np.testing.assert_allclose([normal.mean(), normal.std()], [0, 1], atol=1e-5)


def test_normalize_refuses_stats_of_other_channels():
  with pytest.raises(AssertionError):
    augment.normalize(images(2, c=1), (0.5,) * 3, (0.2,) * 3)
