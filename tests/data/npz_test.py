"""Tests of data/npz.py, and of the file that the package ships."""

import pathlib
import zipfile

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import archives, npz


def test_shipped_subset_is_balanced_and_shuffled():
  loaded = data.load("fashion_mnist_small")
  assert loaded.train.image.shape == (6000, 28, 28, 1) and loaded.test.image.shape == (2000, 28, 28, 1)
  assert np.bincount(loaded.train.label).tolist() == [600] * 10
  assert np.bincount(loaded.test.label).tolist() == [200] * 10
  assert loaded.class_names[0] == "T-shirt/top" and len(loaded.class_names) == 10
  assert loaded.name == "fashion_mnist_small"
  assert len(set(loaded.train.label[:60].tolist())) == 10  # shuffled: a prefix has all the classes


@pytest.mark.skipif(
  not pathlib.Path(archives.DEBIAN_FOLDER).is_dir(), reason="no Debian package dataset-fashion-mnist"
)
def test_shipped_subset_is_reproduced_from_fashion_mnist():
  raw, shipped = archives.read_fashion_mnist("", ""), npz.read_fashion_mnist_small("", "")
  rng = np.random.RandomState(0)
  for full, subset, count in ((raw.train, shipped.train, 600), (raw.test, shipped.test, 200)):
    members = [rng.permutation(np.flatnonzero(full.label == k))[:count] for k in range(10)]
    order = rng.permutation(np.concatenate(members))
    np.testing.assert_array_equal(subset.image, full.image[order])
    np.testing.assert_array_equal(subset.label, full.label[order])
  assert shipped.class_names == raw.class_names


def test_shipped_subset_has_its_licence_beside_it():
  text = npz.FASHION_MNIST_SMALL_FILE.with_suffix(".LICENSE").read_text()
  assert "Copyright (c) 2017 Zalando SE" in text and "Permission is hereby granted" in text


def test_class_names_are_read(arrays, save):
  arrays["class_names"] = np.array(["cat", "dog", "owl"])
  assert data.load(save(arrays)).class_names == ("cat", "dog", "owl")


def test_reads_a_relative_path(arrays, save, monkeypatch, tmp_path):
  save(arrays)
  monkeypatch.chdir(tmp_path)
  loaded = data.load("npz:own.npz")
  assert loaded.name == "npz:own.npz" and len(loaded.train.image) == 30


def test_refuses_an_absent_file(tmp_path, refuses):
  refuses("npz:nowhere.npz", "data.source: 'npz:nowhere.npz'", f"no file {tmp_path / 'nowhere.npz'}")


def test_refuses_a_folder(tmp_path, refuses):
  refuses(f"npz:{tmp_path}", "data.source", "no file")


@pytest.mark.parametrize("content", [b"", b"some text"])
def test_refuses_another_kind_of_file(content, tmp_path, refuses):
  (tmp_path / "own.npz").write_bytes(content)
  refuses("npz:own.npz", "data.source: 'npz:own.npz': own.npz is not an .npz file")


def test_refuses_a_single_array(tmp_path, refuses):
  np.save(tmp_path / "own.npy", np.zeros(3))
  refuses("npz:own.npy", "own.npy is not an .npz file", "numpy.savez")


def test_refuses_a_truncated_file(tmp_path, arrays, save, refuses):
  save(arrays)
  path = tmp_path / "own.npz"
  path.write_bytes(path.read_bytes()[:-100])
  refuses("npz:own.npz", "not all of one")


def test_refuses_damaged_content(tmp_path, arrays, save, refuses):
  save(arrays)
  raw = bytearray((tmp_path / "own.npz").read_bytes())
  raw[1000:1100] = bytes(100)
  (tmp_path / "own.npz").write_bytes(raw)
  refuses("npz:own.npz", "cannot read train_images", "CRC")


def test_refuses_missing_arrays(arrays, save, refuses):
  del arrays["test_images"], arrays["test_labels"]
  refuses(save(arrays), "lacks test_images, test_labels (it holds train_images, train_labels)")


def test_refuses_python_objects(arrays, save, refuses):
  arrays["train_labels"] = arrays["train_labels"].astype(object)
  refuses(save(arrays), "cannot read train_labels", "store plain numbers")


def test_refuses_class_names_as_bytes(arrays, save, refuses):
  arrays["class_names"] = np.array([b"cat", b"dog", b"owl"])
  refuses(save(arrays), "class_names are |S3", "strings")


def test_refuses_a_member_that_is_not_an_array(tmp_path, arrays, save, refuses):
  del arrays["train_images"]
  save(arrays)
  with zipfile.ZipFile(tmp_path / "own.npz", "a") as file:
    file.writestr("train_images", "hello")
  refuses("npz:own.npz", "train_images is not an array")
