"""Tests of data/resize.py, and of the options of `data.load` that need it."""

import numpy as np
from PIL import Image
import pytest

import photographs
from smskd_jax import data
from smskd_jax.data import resize


@pytest.mark.parametrize("shape", [(16, 16), (20, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizes_as_pillow_does(shape, channels):
  image = photographs.rgb()[:4, ..., :channels]
  ours = resize.resize_images(image, (*shape, channels))
  assert ours.shape == (4, *shape, channels) and ours.dtype == np.uint8
  theirs = Image.fromarray(image[2].squeeze()).resize(shape[::-1], Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(ours[2].squeeze(), np.asarray(theirs))


def test_grey_is_repeated_and_colours_become_their_luma():
  image = photographs.rgb()[:4]
  grey = resize.resize_images(image, (*image.shape[1:3], 1))
  theirs = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in image])
  assert np.abs(grey[..., 0].astype(int) - theirs).max() <= 1  # Pillow rounds in fixed point
  coloured = resize.resize_images(grey, image.shape[1:])
  assert all((coloured[..., [i]] == grey).all() for i in range(3))


def test_images_of_the_right_shape_stay_as_they_are():
  image = photographs.rgb()
  assert resize.resize_images(image, image.shape[1:]) is image


def test_a_data_set_of_another_size(arrays, save):
  source = save(arrays)
  plain, resized = data.load(source), data.load(source, image_size=16, validation=0.2)
  assert resized.image_shape == (16, 16, 3) and resized.test.image.shape == (12, 16, 16, 3)
  assert resized.validation.image.shape == (6, 16, 16, 3)
  assert (resized.mean, resized.std) == (plain.mean, plain.std)
  assert resized.fingerprint != plain.fingerprint
  np.testing.assert_array_equal(resized.test.label, plain.test.label)


def test_unlabeled_images_get_the_shape_of_the_others(arrays, save):
  source = save(arrays)
  loaded = data.load(source, unlabeled="digits")
  assert loaded.unlabeled.shape == (1438, 8, 9, 3)
  assert loaded.fingerprint == data.load(source).fingerprint
  assert data.load(source).unlabeled is None


def test_refuses(refuses, arrays, save):
  source = save(arrays)
  refuses(source, "data.image_size: 4 is too small", "at least 8", image_size=4)
  refuses(source, "data.unlabeled: unknown 'digit'", "did you mean 'digits'", unlabeled="digit")
  refuses(source, "data.unlabeled: 'npz:' lacks what follows the colon", unlabeled="npz:")
  refuses(source, "data.unlabeled: 'npz:none.npz': no file", unlabeled="npz:none.npz")
