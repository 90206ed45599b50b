"""Tests of data/dataset.py: channel statistics, fingerprint, refusals, validation split, resizing."""

import numpy as np
from PIL import Image
import pytest

import photographs
from smskd_jax import data
from smskd_jax.data import dataset


def test_channel_stats_equal_numpy(arrays, save):
  loaded = data.load(save(arrays))
  scaled = arrays["train_images"] / 255
  np.testing.assert_allclose(loaded.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(loaded.std, scaled.std((0, 1, 2)), rtol=1e-12)
  assert len(loaded.mean) == len(loaded.std) == 3 and all(isinstance(m, float) for m in loaded.mean)


def test_channel_stats_of_more_images_than_one_block():
  image = np.zeros((5000, 8, 8, 1), np.uint8)
  image[4500:] = 255
  (mean,), (std,) = dataset._measure_channel_stats("", image)
  assert mean == 0.1
  np.testing.assert_allclose(std, 0.3, rtol=1e-15)


def test_types_and_default_class_names(arrays, save):
  loaded = data.load(save(arrays))
  assert loaded.train.image.dtype == np.uint8 and loaded.train.label.dtype == np.int32
  assert loaded.class_names == ("0", "1", "2") and loaded.validation is None
  np.testing.assert_array_equal(loaded.train.image, arrays["train_images"])
  np.testing.assert_array_equal(loaded.test.label, arrays["test_labels"])


def test_grey_images_get_a_channel_axis(arrays, save):
  arrays |= {key: arrays[key][..., 0] for key in ("train_images", "test_images")}
  loaded = data.load(save(arrays))
  assert loaded.train.image.shape == (30, 8, 9, 1) and loaded.test.image.shape == (12, 8, 9, 1)


def test_fingerprint_is_stable_and_changes_with_every_array(arrays, save):
  def fingerprint(**changes):
    return data.load(save(arrays | changes)).fingerprint

  original = fingerprint()
  assert original == fingerprint() and len(original) == 64
  assert original == fingerprint(train_labels=arrays["train_labels"].astype(np.uint8))
  changed = [fingerprint(class_names=np.array(["a", "b", "c"]))]
  for key, value in arrays.items():
    other = value.copy()
    other.flat[-1] = (other.flat[-1] + 1) % 3
    changed.append(fingerprint(**{key: other}))
  reshaped = {key: arrays[key].swapaxes(1, 2) for key in ("train_images", "test_images")}
  same_bytes = {key: arrays[key].reshape(-1, 9, 8, 3) for key in ("train_images", "test_images")}
  changed += [fingerprint(**reshaped), fingerprint(**same_bytes)]
  assert len({original, *changed}) == len(changed) + 1


def test_fingerprint_does_not_depend_on_the_validation_split(arrays, save):
  source = save(arrays)
  whole, part = data.load(source), data.load(source, validation=0.2)
  assert (whole.fingerprint, whole.mean, whole.std) == (part.fingerprint, part.mean, part.std)


INVALID = {  # array, change, part of the message
  "float images": ("train_images", lambda x: x / 255, "train images are float64; store them as uint8"),
  "rank 2": ("test_images", lambda x: x[0, 0], "test images have shape (9, 3)"),
  "rank 5": ("train_images", lambda x: x[None], "(1, 30, 8, 9, 3); it must be [n, h, w] or [n, h, w, c]"),
  "label rank": ("train_labels", lambda x: x[:, None], "train labels have shape (30, 1); it must be [n]"),
  "length": ("test_labels", lambda x: x[1:], "12 test images but 11 test labels"),
  "float labels": ("train_labels", lambda x: x * 1.0, "train labels are float64; store them as integers"),
  "flags as labels": ("train_labels", lambda x: x > 0, "train labels are bool; store them as integers"),
  "negative": ("test_labels", lambda x: x - 1, "test labels hold -1"),
  "beyond 32 bits": ("test_labels", lambda x: x + 2**32, "test labels hold 4294967296"),
  "identifiers": ("train_labels", lambda x: x + 900, "train labels hold 902 though there are 30 images"),
  "too few names": ("class_names", lambda _: np.array(["a", "b"]), "hold 2 but there are 2 class names"),
  "same names": ("class_names", lambda _: np.array(["a", "b", "a"]), "class name 'a' occurs twice"),
  "one class": ("train_labels", lambda x: x * 0, "all train labels are 0"),
  "unseen": ("train_labels", lambda x: x % 2, "test label 2 never occurs in train"),
  "small": (
    "train_images",
    lambda x: x[:, :7],
    "train images are 7x9 (height x width); the networks need at least 8x8",
  ),
  "channels": ("train_images", lambda x: x[..., :2], "train images have 2 channels"),
  "sizes": ("test_images", lambda x: x.swapaxes(1, 2), "(8, 9, 3) in train but (9, 8, 3) in test"),
  "constant": ("train_images", lambda x: x * (np.arange(3) != 1), "channel 1 is the same in every pixel"),
}


@pytest.mark.parametrize("name", INVALID)
def test_refuses_invalid_arrays(name, arrays, save, refuses):
  key, change, part = INVALID[name]
  source = save(arrays | {key: change(arrays.get(key))})
  refuses(source, f"data.source: {source!r}", part)


def test_refuses_an_empty_split(arrays, save, refuses):
  empty = {key: arrays[key][:0] for key in ("test_images", "test_labels")}
  refuses(save(arrays | empty), "no test images")


# --- Train and validation ---


def test_stratified_mask_selects_the_fraction_of_every_class():
  label = np.repeat([0, 1, 3], [10, 25, 7])
  selected = dataset.stratified_mask(label, 0.3, seed=0)
  assert [int(selected[label == k].sum()) for k in (0, 1, 3)] == [3, round(7.5), 2]


def test_stratified_mask_does_not_change_between_versions():
  # A split that changed with NumPy's version would make old runs incomparable.
  selected = dataset.stratified_mask(np.arange(40) % 2, 0.2, seed=1)
  assert np.flatnonzero(selected).tolist() == [6, 7, 12, 17, 20, 31, 32, 33]


def test_stratified_mask_depends_on_the_seed():
  label = np.arange(100) % 2
  masks = [dataset.stratified_mask(label, 0.5, seed) for seed in (0, 0, 1)]
  assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()


def test_train_and_validation_partition_the_training_set_in_order(arrays, save):
  arrays["train_images"][:, 0, 0, 0] = np.arange(30)  # marks each image
  source = save(arrays)
  loaded = data.load(source, validation=0.2, split_seed=3)
  train, validation = (split.image[:, 0, 0, 0] for split in (loaded.train, loaded.validation))
  assert sorted([*train, *validation]) == list(range(30))
  assert (np.diff(train.astype(int)) > 0).all() and (np.diff(validation.astype(int)) > 0).all()
  np.testing.assert_array_equal(loaded.validation.label, validation % 3)
  assert np.bincount(loaded.validation.label).tolist() == [2, 2, 2]
  assert loaded.test.image.shape == (12, 8, 9, 3)


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan"), "0.1", None])
def test_refuses_an_invalid_validation_fraction(fraction, refuses):
  refuses("digits", "data.validation: ", repr(fraction), "0 <= fraction < 1", validation=fraction)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0"])
def test_refuses_an_invalid_split_seed(seed, refuses):
  refuses("digits", "data.split_seed: ", repr(seed), split_seed=seed)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_refuses_to_leave_a_class_without_images(fraction, arrays, save, refuses):
  arrays["class_names"] = np.array(["cat", "dog", "owl"])
  refuses(
    save(arrays), f"data.validation: {fraction} of the 10 train images of class 'cat'", validation=fraction
  )


# --- Resizing ---


@pytest.mark.parametrize("shape", [(16, 16), (20, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resize_equals_pillow(shape, channels):
  image = photographs.rgb()[:4, ..., :channels]
  ours = dataset.resize_images(image, (*shape, channels))
  assert ours.shape == (4, *shape, channels) and ours.dtype == np.uint8
  theirs = Image.fromarray(image[2].squeeze()).resize(shape[::-1], Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(ours[2].squeeze(), np.asarray(theirs))


def test_resize_repeats_grey_and_takes_the_luma_of_colours():
  image = photographs.rgb()[:4]
  grey = dataset.resize_images(image, (*image.shape[1:3], 1))
  theirs = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in image])
  assert np.abs(grey[..., 0].astype(int) - theirs).max() <= 1  # Pillow rounds in fixed point
  coloured = dataset.resize_images(grey, image.shape[1:])
  assert all((coloured[..., [i]] == grey).all() for i in range(3))


def test_resize_returns_images_of_the_right_shape_unchanged():
  image = photographs.rgb()
  assert dataset.resize_images(image, image.shape[1:]) is image


def test_load_resizes_all_splits(arrays, save):
  source = save(arrays)
  plain, resized = data.load(source), data.load(source, image_size=16, validation=0.2)
  assert resized.image_shape == (16, 16, 3) and resized.test.image.shape == (12, 16, 16, 3)
  assert resized.validation.image.shape == (6, 16, 16, 3)
  assert (resized.mean, resized.std) == (plain.mean, plain.std)
  assert resized.fingerprint != plain.fingerprint
  np.testing.assert_array_equal(resized.test.label, plain.test.label)


def test_unlabeled_images_are_resized_to_the_data(arrays, save):
  source = save(arrays)
  loaded = data.load(source, unlabeled="digits")
  assert loaded.unlabeled.shape == (1438, 8, 9, 3)
  assert loaded.fingerprint == data.load(source).fingerprint
  assert data.load(source).unlabeled is None


def test_refuses_invalid_image_sizes_and_unlabeled_sources(refuses, arrays, save):
  source = save(arrays)
  refuses(source, "data.image_size: 4 is too small", "at least 8", image_size=4)
  refuses(source, "data.unlabeled: unknown 'digit'", "did you mean 'digits'", unlabeled="digit")
  refuses(source, "data.unlabeled: 'npz:' lacks what follows the colon", unlabeled="npz:")
  refuses(source, "data.unlabeled: 'npz:none.npz': no file", unlabeled="npz:none.npz")
