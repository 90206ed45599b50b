"""Tests of data/views.py: what holds for every view, and how views are chained."""

import functools

import jax
import numpy as np
import pytest

import photographs
from smskd_jax.data import augment, erasing
from smskd_jax.data.views import VIEWS, make_view, view_options

KEY = jax.random.key(5)
INDEX = np.arange(24) * 7
CHAIN = "crop_flip+trivialaugment+random_erasing"


@functools.cache
def compiled(name):
  return jax.jit(make_view(name))


@pytest.mark.parametrize("name", [*(name for name in VIEWS if name != "noise"), CHAIN])
def test_an_example_depends_on_key_and_index_alone(name):
  image = photographs.rgb()
  whole = np.asarray(compiled(name)(KEY, image, INDEX))
  assert whole.dtype == np.uint8 and whole.shape == image.shape
  assert (whole != image).any() == (name != "plain")
  order = np.random.default_rng(0).permutation(24)[:16].repeat([2] * 8 + [1] * 8)
  others = np.asarray(compiled(name)(KEY, image[order], INDEX[order]))
  np.testing.assert_array_equal(others, whole[order])


def test_noise_is_standard_normal_and_of_key_and_index_alone():
  image = photographs.rgb()
  noise = np.asarray(make_view("noise")(KEY, image, INDEX))
  assert noise.dtype == np.float32 and noise.shape == image.shape
  n = noise.size
  assert abs(noise.mean()) < 5 / np.sqrt(n) and abs(noise.std() - 1) < 5 / np.sqrt(2 * n)
  others = np.asarray(make_view("noise")(KEY, image[::-1], INDEX[::-1]))
  np.testing.assert_array_equal(others[::-1], noise)


def test_one_device_equals_eight():
  image = photographs.rgb()
  split = lambda x: x.reshape(8, 3, *x.shape[1:])
  eight = jax.pmap(make_view(CHAIN), in_axes=(None, 0, 0))(KEY, split(image), split(INDEX))
  np.testing.assert_array_equal(np.asarray(eight).reshape(image.shape), compiled(CHAIN)(KEY, image, INDEX))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_any_size_under_strict_promotion(name, channels):
  image = jax.ShapeDtypeStruct((2, 8, 11, channels), np.uint8)
  with jax.numpy_dtype_promotion("strict"):
    seen = jax.eval_shape(make_view(name), KEY, image, INDEX[:2])
  assert seen.shape == image.shape and seen.dtype == (np.float32 if name == "noise" else np.uint8)


def test_another_key_and_another_index_give_another_view():
  image, view = photographs.rgb(), compiled(CHAIN)
  views = [view(KEY, image, INDEX), view(jax.random.key(6), image, INDEX), view(KEY, image, INDEX + 1)]
  changed = [np.mean((a != b).any((1, 2, 3))) for a, b in ((views[0], views[1]), (views[0], views[2]))]
  assert min(changed) > 0.9


def test_crop_flip_is_what_it_was():
  image = photographs.rgb()
  expected = augment.crop_flip(KEY, image, INDEX, padding=2, flip=False)
  np.testing.assert_array_equal(
    make_view("crop_flip", {"crop_flip": {"padding": 2, "flip": False}})(KEY, image, INDEX), expected
  )
  chained = make_view("crop_flip+plain", {"crop_flip": {"padding": 2, "flip": False}})(KEY, image, INDEX)
  np.testing.assert_array_equal(chained, expected)


def test_a_chain_applies_its_parts_in_order_with_keys_of_their_own():
  image = photographs.rgb()
  key = lambda place: jax.random.fold_in(KEY, 2**32 - 1 - place)
  expected = augment.crop_flip(KEY, image, INDEX, padding=4, flip=True)
  once = erasing.cutout(key(1), expected, INDEX, size=4)
  twice = erasing.cutout(key(2), once, INDEX, size=4)
  np.testing.assert_array_equal(
    make_view("crop_flip+cutout+cutout", {"cutout": {"size": 4}})(KEY, image, INDEX), twice
  )
  assert (once != twice).any((1, 2, 3)).all()


def test_options_are_those_of_a_part():
  known = {
    "crop_flip": {"padding": 4, "flip": True, "num_views": 0},
    "randaugment": {"num_ops": 2, "magnitude": 9, "fill": 0},
    "cutout": {"size": 16, "fill": 128},
  }
  assert view_options("crop_flip+randaugment+cutout") == known
  assert view_options("plain") == {"plain": {}}
  image = np.zeros((24, 16, 16, 1), np.uint8)
  options = {"random_erasing": {"fill": 7}, "cutout": {"fill": 9, "size": 4}, "autoaugment": {"fill": 3}}
  both = np.asarray(make_view("random_erasing+cutout", options)(KEY, image, INDEX))
  assert set(np.unique(both)) == {0, 7, 9} and (both == 9).sum((1, 2, 3)).max() == 16


def test_policies_fill_with_a_colour():
  image = np.full((24, 16, 16, 3), 255, np.uint8)
  filled = np.asarray(make_view("trivialaugment", {"trivialaugment": {"fill": (9, 8, 7)}})(KEY, image, INDEX))
  assert (filled == [9, 8, 7]).all(-1).any((1, 2)).sum() > 4


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    (
      "mosaic",
      {},
      r"view 'mosaic': unknown part 'mosaic'; known: plain, crop_flip, autoaugment, randaugment, ",
    ),
    ("crop_flip+", {}, r"view 'crop_flip\+': unknown part ''"),
    ("crop_flip + cutout", {}, r"unknown part 'crop_flip '"),
    ("cutout", {"magnitude": 3}, r"view 'cutout' has no option 'magnitude'; it has: size, fill"),
    ("plain", {"fill": 3}, r"it has: none"),
    ("noise+crop_flip", {}, r"'noise' leaves nothing of the image for other parts; use it alone"),
  ],
)
def test_refuses_what_it_does_not_know(name, options, message):
  with pytest.raises(ValueError, match=message):
    make_view(name, {name: options})
