"""Tests of data/cifar_jpeg.py."""

import io

import numpy as np
from PIL import Image
import pytest

from smskd_jax import data
from smskd_jax.data import cifar_jpeg

REAL = cifar_jpeg.BESIDE / "cifar10_jpeg.npz"
needs_real = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is not there")


def jpeg(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=100, subsampling=0)
  return file.getvalue()


def write(folder, files, label, train):
  stream = np.frombuffer(b"".join(files), np.uint8)
  length = np.array([len(file) for file in files], np.uint16)
  np.savez(folder / "cifar10_jpeg.npz", data=stream, length=length, label=label, train=train)


@pytest.fixture
def shades():
  """Twenty images of one colour each, which JPEG hardly changes."""
  return np.stack([np.full((32, 32, 3), [10 * i, 255 - 10 * i, 128], np.uint8) for i in range(20)])


def test_images_find_their_labels_and_splits(tmp_path, shades):
  label, train = np.arange(20, dtype=np.uint8) // 2, np.arange(20) % 2 == 0
  write(tmp_path, [jpeg(image) for image in shades], label, train)
  loaded = data.load("cifar10_jpeg", folder=str(tmp_path))
  assert np.abs(loaded.train.image.astype(int) - shades[::2]).max() <= 2
  assert np.abs(loaded.test.image.astype(int) - shades[1::2]).max() <= 2
  assert loaded.train.label.tolist() == loaded.test.label.tolist() == list(range(10))


def test_refuses_an_absent_file(tmp_path, refuses):
  refuses("cifar10_jpeg", "data.folder: no cifar10_jpeg.npz in", folder=str(tmp_path / "nowhere"))


def test_refuses_damaged_images(tmp_path, shades, refuses):
  files = [jpeg(image)[:200] for image in shades]
  write(tmp_path, files, np.arange(20, dtype=np.uint8) // 2, np.arange(20) % 2 == 0)
  refuses("cifar10_jpeg", "data.folder: cannot decode", folder=str(tmp_path))


@needs_real
def test_first_real_images_are_airplanes():
  with np.load(REAL) as file:
    stream, length, label = file["data"], file["length"][:500], file["label"][:500]
  image = cifar_jpeg.decode(stream[: length.sum(dtype=int)].tobytes(), length)
  assert image.shape == (500, 32, 32, 3) and (label == 0).all()
  red, _, blue = image[:, :4].mean((0, 1, 2))  # the sky above them
  assert blue > red + 10


@needs_real
@pytest.mark.slow
def test_all_real_images():
  loaded = data.load("cifar10_jpeg")
  assert np.bincount(loaded.train.label).tolist() == [5000] * 10
  assert np.bincount(loaded.test.label).tolist() == [1000] * 10
  np.testing.assert_allclose(loaded.mean, [0.4913, 0.4821, 0.4465], atol=1e-4)
  np.testing.assert_allclose(loaded.std, [0.2452, 0.2428, 0.2606], atol=1e-4)
