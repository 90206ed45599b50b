"""Tests of data/views.py: properties of every view, chains, and views that can be enumerated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photographs
from smskd_jax.data import augment, erasing, views
from smskd_jax.data.views import VIEWS, make_view, view_options

KEY = jax.random.key(5)
INDEX = np.arange(24, dtype=np.int32) * 7
CHAIN = "crop_flip+trivialaugment+random_erasing"


@functools.cache
def compiled(name):
  return jax.jit(make_view(name))


@pytest.mark.parametrize("name", [*(name for name in VIEWS if name != "noise"), CHAIN])
def test_a_view_depends_on_key_and_index_alone(name):
  image = photographs.rgb()
  whole = np.asarray(compiled(name)(KEY, image, INDEX))
  assert whole.dtype == np.uint8 and whole.shape == image.shape
  assert (whole != image).any() == (name != "plain")
  order = np.random.default_rng(0).permutation(24)[:16].repeat([2] * 8 + [1] * 8)
  others = np.asarray(compiled(name)(KEY, image[order], INDEX[order]))
  np.testing.assert_array_equal(others, whole[order])


def test_noise_is_standard_normal_and_depends_on_key_and_index_alone():
  image = photographs.rgb()
  noise = np.asarray(make_view("noise")(KEY, image, INDEX))
  assert noise.dtype == np.float32 and noise.shape == image.shape
  n = noise.size
  assert abs(noise.mean()) < 5 / np.sqrt(n) and abs(noise.std() - 1) < 5 / np.sqrt(2 * n)
  others = np.asarray(make_view("noise")(KEY, image[::-1], INDEX[::-1]))
  np.testing.assert_array_equal(others[::-1], noise)


def test_one_device_equals_eight():
  image = photographs.rgb()
  sharded = jax.pmap(make_view(CHAIN), in_axes=(None, 0, 0))
  eight = sharded(KEY, image.reshape(8, 3, *image.shape[1:]), INDEX.reshape(8, 3))
  np.testing.assert_array_equal(np.asarray(eight).reshape(image.shape), compiled(CHAIN)(KEY, image, INDEX))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_any_size_under_strict_promotion(name, channels):
  image = jax.ShapeDtypeStruct((2, 8, 11, channels), np.uint8)
  with jax.numpy_dtype_promotion("strict"):
    view = jax.eval_shape(make_view(name), KEY, image, INDEX[:2])
  assert view.shape == image.shape and view.dtype == (np.float32 if name == "noise" else np.uint8)


def test_another_key_and_another_index_give_another_view():
  image, view = photographs.rgb(), compiled(CHAIN)
  first = view(KEY, image, INDEX)
  for other in (view(jax.random.key(6), image, INDEX), view(KEY, image, INDEX + 1)):
    assert np.mean((first != other).any((1, 2, 3))) > 0.9


def test_crop_flip_uses_the_key_unchanged_in_first_position():
  image = photographs.rgb()
  expected = augment.crop_flip(KEY, image, INDEX, padding=2, flip=False)
  np.testing.assert_array_equal(
    make_view("crop_flip", {"crop_flip": {"padding": 2, "flip": False}})(KEY, image, INDEX), expected
  )
  chained = make_view("crop_flip+plain", {"crop_flip": {"padding": 2, "flip": False}})(KEY, image, INDEX)
  np.testing.assert_array_equal(chained, expected)


def test_a_chain_applies_its_parts_in_order_with_their_own_keys():
  image = photographs.rgb()
  keys = [jax.random.fold_in(KEY, 2**32 - 1 - position) for position in range(3)]
  expected = augment.crop_flip(KEY, image, INDEX, padding=4, flip=True)
  once = erasing.cutout(keys[1], expected, INDEX, size=4)
  twice = erasing.cutout(keys[2], once, INDEX, size=4)
  np.testing.assert_array_equal(
    make_view("crop_flip+cutout+cutout", {"cutout": {"size": 4}})(KEY, image, INDEX), twice
  )
  assert (once != twice).any((1, 2, 3)).all()


def test_view_options_are_the_keywords_of_each_part():
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


def test_policies_fill_with_the_given_colour():
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
    ("noise+crop_flip", {}, r"'noise' replaces the image and cannot be chained; use 'noise' alone"),
  ],
)
def test_refuses_unknown_parts_and_options(name, options, message):
  with pytest.raises(ValueError, match=message):
    make_view(name, {name: options})


# --- Enumerable views ---


@pytest.mark.parametrize("options", [{}, {"flip": False}, {"padding": 2}, {"padding": 0}])
def test_sampled_view_indices_render_the_usual_augmentation(options):
  view, image = views.enumerable_crop_flip(**options), photographs.rgb()
  for seed in range(3):
    key = jax.random.key(seed)
    view_index = view.sample_index(key, INDEX)
    assert view_index.dtype == jnp.int32 and (view_index >= 0).all() and (view_index < view.num_views).all()
    expected = augment.crop_flip(key, image, INDEX, **{"padding": 4, "flip": True} | options)
    np.testing.assert_array_equal(view.render(image, INDEX, view_index), expected)


def test_every_view_equals_numpy():
  image = photographs.rgb()[:1]
  view, h, w = views.enumerable_crop_flip(padding=1), *image.shape[1:3]
  padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
  assert view.num_views == 18
  for i in range(18):
    y, x, flipped = i // 6, i // 2 % 3, i % 2
    expected = padded[y : y + h, x : x + w]
    (rendered,) = view.render(image, INDEX[:1], jnp.full(1, i))
    np.testing.assert_array_equal(rendered, expected[:, ::-1] if flipped else expected)


@pytest.mark.parametrize("count", [1, 4, 16, 100, 161])
def test_a_subset_of_views_differs_by_image_and_is_fixed(count):
  image = np.arange(32 * 32, dtype=np.int32).reshape(1, 32, 32, 1).astype(np.uint8).repeat(3, axis=-1)
  image[..., 1] = np.arange(32)[:, None] * 7
  subset = views.enumerable_crop_flip(num_views=count)
  assert subset.num_views == count

  def render_all(view, index):
    indices = jnp.arange(view.num_views)
    images = view.render(image.repeat(len(indices), 0), jnp.full(len(indices), index), indices)
    return {x.tobytes() for x in np.asarray(images)}

  all_views, some = render_all(views.enumerable_crop_flip(), 5), render_all(subset, 5)
  assert len(all_views) == 162 and len(some) == count and some <= all_views
  if 1 < count < 100:
    assert some != render_all(subset, 6), "each image has its own views"
  sampled = subset.sample_index(KEY, np.arange(1500))
  assert sampled.min() == 0 and sampled.max() >= min(count - 1, 150)


def test_make_view_samples_the_enumerated_views():
  image, key = photographs.rgb(), jax.random.key(3)
  view = views.enumerable_crop_flip(num_views=9)
  made = make_view("crop_flip", {"crop_flip": {"num_views": 9}})(key, image, INDEX)
  np.testing.assert_array_equal(made, view.render(image, INDEX, view.sample_index(key, INDEX)))
  plain = views.enumerable_plain()
  np.testing.assert_array_equal(plain.render(image, INDEX, plain.sample_index(key, INDEX)), image)


@pytest.mark.parametrize("count", [-1, 163])
def test_refuses_more_views_than_there_are(count):
  with pytest.raises(
    ValueError, match=f"crop_flip.num_views: {count}; a padding of 4 gives 162, and 0 means all"
  ):
    views.enumerable_crop_flip(num_views=count)
