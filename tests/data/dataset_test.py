"""Tests of data/dataset.py: what is measured on the arrays, and every mistake in them."""

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import dataset


def test_moments_equal_numpy(arrays, save):
  loaded = data.load(save(arrays))
  scaled = arrays["train_images"] / 255
  np.testing.assert_allclose(loaded.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(loaded.std, scaled.std((0, 1, 2)), rtol=1e-12)
  assert len(loaded.mean) == len(loaded.std) == 3 and all(isinstance(m, float) for m in loaded.mean)


def test_moments_over_more_images_than_one_histogram_takes():
  image = np.zeros((5000, 8, 8, 1), np.uint8)
  image[4500:] = 255
  (mean,), (std,) = dataset._measure_channel_stats("", image)
  assert mean == 0.1
  np.testing.assert_allclose(std, 0.3, rtol=1e-15)


def test_types(arrays, save):
  loaded = data.load(save(arrays))
  assert loaded.train.image.dtype == np.uint8 and loaded.train.label.dtype == np.int32
  assert loaded.class_names == ("0", "1", "2") and loaded.validation is None
  np.testing.assert_array_equal(loaded.train.image, arrays["train_images"])
  np.testing.assert_array_equal(loaded.test.label, arrays["test_labels"])


def test_grey_images_without_a_channel(arrays, save):
  arrays |= {key: arrays[key][..., 0] for key in ("train_images", "test_images")}
  loaded = data.load(save(arrays))
  assert loaded.train.image.shape == (30, 8, 9, 1) and loaded.test.image.shape == (12, 8, 9, 1)


def test_fingerprint_is_stable_and_sees_every_change(arrays, save):
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


def test_fingerprint_does_not_depend_on_what_is_held_out(arrays, save):
  source = save(arrays)
  whole, part = data.load(source), data.load(source, validation=0.2)
  assert (whole.fingerprint, whole.mean, whole.std) == (part.fingerprint, part.mean, part.std)


MISTAKES = {  # the array, how it is spoilt, what the message says
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


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name, arrays, save, refuses):
  key, spoil, part = MISTAKES[name]
  source = save(arrays | {key: spoil(arrays.get(key))})
  refuses(source, f"data.source: {source!r}", part)


def test_empty_split_is_named(arrays, save, refuses):
  empty = {key: arrays[key][:0] for key in ("test_images", "test_labels")}
  refuses(save(arrays | empty), "no test images")
