"""Tests of data/make_fashion_mnist_small.py."""

import pathlib

import numpy as np
import pytest

from smskd_jax.data import idx, make_fashion_mnist_small
from smskd_jax.data.npz import FASHION_MNIST_SMALL_FILE


@pytest.mark.skipif(
  not pathlib.Path(idx.DEBIAN_FOLDER).is_dir(),
  reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_shipped_file_is_what_the_module_makes():
  made = make_fashion_mnist_small.sample_subset()
  with np.load(FASHION_MNIST_SMALL_FILE) as shipped:
    assert set(shipped) == set(made)
    for key, array in made.items():
      assert shipped[key].dtype == array.dtype
      np.testing.assert_array_equal(shipped[key], array)


def test_licence_lies_beside_it():
  text = FASHION_MNIST_SMALL_FILE.with_suffix(".LICENSE").read_text()
  assert "Copyright (c) 2017 Zalando SE" in text and "Permission is hereby granted" in text
