"""Tests of data/idx.py."""

import gzip
import pathlib
import struct

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.data import idx

needs_debian = pytest.mark.skipif(
  not pathlib.Path(idx.DEBIAN_FOLDER).is_dir(),
  reason="Debian's package dataset-fashion-mnist is not installed",
)


def write(path, array):
  header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
  path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
  rng = np.random.default_rng(0)
  for stem, n in (("train", 40), ("t10k", 20)):
    write(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28), np.uint8))
    write(tmp_path / f"{stem}-labels-idx1-ubyte.gz", (np.arange(n) % 10).astype(np.uint8))
  return tmp_path


@needs_debian
def test_debian():
  loaded = data.load("fashion_mnist")
  assert loaded.train.image.shape == (60_000, 28, 28, 1) and loaded.test.image.shape == (10_000, 28, 28, 1)
  assert np.bincount(loaded.train.label).tolist() == [6000] * 10
  np.testing.assert_allclose([*loaded.mean, *loaded.std], [0.2860, 0.3530], atol=5e-5)
  assert loaded.class_names[9] == "Ankle boot" and loaded.train.label[0] == 9
  # An ankle boot has its sole at the bottom: the image is neither turned nor mirrored upside down.
  assert loaded.train.image[0, 20:].mean() > 4 * loaded.train.image[0, :8].mean()


def test_own_folder(folder):
  loaded = data.load("fashion_mnist", folder=str(folder))
  rng = np.random.default_rng(0)
  np.testing.assert_array_equal(loaded.train.image[..., 0], rng.integers(0, 256, (40, 28, 28), np.uint8))
  assert loaded.test.label.tolist() == [*range(10), *range(10)]


def test_refuses_an_absent_folder(tmp_path, refuses):
  refuses(
    "fashion_mnist",
    "data.folder: no file",
    "nowhere",
    "dataset-fashion-mnist",
    folder=str(tmp_path / "nowhere"),
  )


def test_refuses_an_absent_default(monkeypatch, refuses, tmp_path):
  monkeypatch.setattr(idx, "DEBIAN_FOLDER", str(tmp_path))
  refuses("fashion_mnist", "data.folder: no file", "apt-get install")


@pytest.mark.parametrize(
  "damage, part",
  [
    (lambda raw: raw[: len(raw) // 2], "cannot unpack"),
    (lambda raw: raw[:30] + bytes(40) + raw[70:], "cannot unpack"),
    (lambda raw: b"not gzip at all", "cannot unpack"),
    (lambda raw: b"", "is not an IDX file"),
    (lambda raw: gzip.compress(b"\0\0\x0d\x01\0\0\0\x01abcd"), "is not an IDX file"),
    (lambda raw: gzip.compress(b"\0\0\x08\x03\0\0"), "is not an IDX file"),
    (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "bytes long, not 31376; download it again"),
  ],
)
def test_refuses_a_damaged_file(damage, part, folder, refuses):
  path = folder / "train-images-idx3-ubyte.gz"
  path.write_bytes(damage(path.read_bytes()))
  refuses("fashion_mnist", "data.folder: ", path.name, part, "download it again", folder=str(folder))
