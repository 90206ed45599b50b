"""Tests of data/extra_tests.py."""

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import corruptions, extra_tests
from smskd_jax.data.dataset import RawSplits, Split, validate_and_build
from smskd_jax.errors import UserError


@pytest.fixture
def cifar_like():
  rng = np.random.default_rng(0)
  split = Split(rng.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8), np.arange(20) % 10)
  return validate_and_build("npz:mine", RawSplits(split, split))


def test_names_are_expanded_without_duplicates():
  assert extra_tests.expand_names("f", ("contrast:2", "cifar10.1", "contrast:2")) == (
    "contrast:2",
    "cifar10.1",
  )
  assert extra_tests.expand_names("f", ("contrast",)) == tuple(f"contrast:{s}" for s in range(1, 6))
  assert extra_tests.expand_names("f", ("corruptions:3",)) == tuple(f"{n}:3" for n in corruptions.CORRUPTIONS)
  assert len(extra_tests.expand_names("f", ("corruptions",))) == 45


@pytest.mark.parametrize(
  "name, message",
  [
    ("contrst:2", "did you mean 'contrast'"),
    ("contrast:6", "severity from 1 to 5"),
    ("contrast:x", "severity"),
  ],
)
def test_refuses_unknown_names(name, message):
  with pytest.raises(UserError, match=f"data.extra_tests: .*{message}"):
    extra_tests.expand_names("data.extra_tests", (name,))


def test_corrupted_copies_keep_their_labels():
  digits = data.load("digits")
  found = extra_tests.load_test_set("f", "contrast:4", digits, "")
  np.testing.assert_array_equal(found.label, digits.test.label)
  np.testing.assert_array_equal(found.image, corruptions.corrupt(digits.test.image, "contrast", 4))


def test_test_sets_are_lazy_but_files_are_read_at_once(cifar_like, tmp_path):
  sets = extra_tests.lazy_test_sets("f", ("contrast:4", "contrast:2"), cifar_like, "")
  assert list(sets) == ["contrast:4", "contrast:2"]
  expected = corruptions.corrupt(cifar_like.test.image, "contrast", 2)
  np.testing.assert_array_equal(sets["contrast:2"]().image, expected)
  with pytest.raises(UserError, match=r"cifar10.1_v6_data.npy is missing"):
    extra_tests.lazy_test_sets("f", ("cifar10.1",), cifar_like, str(tmp_path))


def test_cifar_10_1_is_resized_to_the_data(cifar_like, tmp_path):
  write(tmp_path, np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 9, 3, 3], np.uint8))
  small = cifar_like._replace(train=cifar_like.train._replace(image=cifar_like.train.image[:, ::2, ::2]))
  assert extra_tests.load_test_set("f", "cifar10.1", small, str(tmp_path)).image.shape == (4, 16, 16, 3)


def write(folder, image, label):
  np.save(folder / "cifar10.1_v6_data.npy", image)
  np.save(folder / "cifar10.1_v6_labels.npy", label)


def test_cifar_10_1_is_read_and_needs_a_cifar_10_network(cifar_like, tmp_path):
  image, label = np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 9, 3, 3], np.uint8)
  write(tmp_path, image, label)
  found = extra_tests.load_test_set("f", "cifar10.1", cifar_like, str(tmp_path))
  np.testing.assert_array_equal(found.label, label)
  assert found.label.dtype == np.int32 and found.image.shape == image.shape
  with pytest.raises(UserError, match="f: 'cifar10.1' tests networks for CIFAR-10, and 'digits' is another"):
    extra_tests.load_test_set("f", "cifar10.1", data.load("digits"), str(tmp_path))


def test_refuses_missing_and_damaged_files(cifar_like, tmp_path):
  with pytest.raises(UserError, match="cifar10.1_v6_data.npy is missing; get it from"):
    extra_tests.load_test_set("f", "cifar10.1", cifar_like, str(tmp_path))
  (tmp_path / "cifar10.1_v6_data.npy").write_bytes(b"no array")
  with pytest.raises(UserError, match="cannot be read"):
    extra_tests.load_test_set("f", "cifar10.1", cifar_like, str(tmp_path))
  write(tmp_path, np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 2, 10]))
  with pytest.raises(UserError, match="holds other arrays"):
    extra_tests.load_test_set("f", "cifar10.1", cifar_like, str(tmp_path))
