"""Tests of data/splits.py."""

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import splits


def test_draws_the_fraction_of_every_class():
  label = np.repeat([0, 1, 3], [10, 25, 7])
  drawn = splits.stratified_mask(label, 0.3, seed=0)
  assert [int(drawn[label == k].sum()) for k in (0, 1, 3)] == [3, round(7.5), 2]


def test_the_draw_is_frozen():
  # A split that moved with a version of NumPy would make old runs incomparable.
  drawn = splits.stratified_mask(np.arange(40) % 2, 0.2, seed=1)
  assert np.flatnonzero(drawn).tolist() == [6, 7, 12, 17, 20, 31, 32, 33]


def test_seed_matters():
  label = np.arange(100) % 2
  draws = [splits.stratified_mask(label, 0.5, seed) for seed in (0, 0, 1)]
  assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


def test_train_and_validation_part_the_training_set(arrays, save):
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
def test_refuses_what_is_no_fraction(fraction, refuses):
  refuses("digits", "data.validation: ", repr(fraction), "0 <= fraction < 1", validation=fraction)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0"])
def test_refuses_what_is_no_seed(seed, refuses):
  refuses("digits", "data.split_seed: ", repr(seed), split_seed=seed)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_refuses_to_leave_a_class_empty(fraction, arrays, save, refuses):
  arrays["class_names"] = np.array(["cat", "dog", "owl"])
  refuses(
    save(arrays), f"data.validation: {fraction} of the 10 train images of class 'cat'", validation=fraction
  )
