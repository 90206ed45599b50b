"""Tests of data/digits.py."""

import numpy as np
from sklearn.datasets import load_digits

from smskd_jax import data


def test_all_images_are_there_once():
  loaded = data.load("digits")
  assert loaded.train.image.shape == (1438, 8, 8, 1) and loaded.test.image.shape == (359, 8, 8, 1)
  ours = np.concatenate([loaded.train.image, loaded.test.image]).reshape(-1, 64)
  theirs = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
  np.testing.assert_array_equal(np.sort(ours.view("V64").ravel()), np.sort(theirs.view("V64").ravel()))


def test_split_keeps_proportions_and_full_range():
  loaded = data.load("digits")
  counts = [np.bincount(split.label) for split in (loaded.train, loaded.test)]
  np.testing.assert_allclose(counts[1] / (counts[0] + counts[1]), 0.2, atol=0.003)
  assert loaded.train.image.min() == 0 and loaded.train.image.max() == 255
  assert loaded.class_names == tuple("0123456789")


def test_labels_belong_to_their_images():
  # The nearest training image is nearly always of the same class; with shuffled labels, one time in ten.
  train, test = data.load("digits")[1:4:2]
  a, b = (split.image.reshape(-1, 64).astype(np.float32) for split in (train, test))
  nearest = (np.square(a).sum(1) - 2 * b @ a.T).argmin(1)
  assert np.mean(train.label[nearest] == test.label) > 0.95
