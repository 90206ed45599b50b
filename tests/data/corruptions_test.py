"""Tests of data/corruptions.py."""

import io

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from smskd_jax.data import corruptions
from smskd_jax.data.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def photos():
  """Pieces [n, 32, 32, 3] of a real photograph that comes with scikit-learn."""
  china = datasets.load_sample_image("china.jpg")[:416, :640]
  return china.reshape(13, 32, 20, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_distance_grows_with_severity(name, channels, photos):
  image = photos[..., :channels]
  distance = []
  for severity in corruptions.SEVERITIES:
    found = corrupt(image, name, severity)
    assert found.shape == image.shape and found.dtype == np.uint8
    distance.append(np.abs(found.astype(float) - image).mean())
  assert distance[0] > 0 and distance == sorted(distance)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_deterministic_for_a_seed(name, photos):
  once, again = (corrupt(photos[:20], name, 3) for _ in range(2))
  np.testing.assert_array_equal(once, again)
  other = corrupt(photos[:20], name, 3, seed=1)
  assert (once != other).any() == name.endswith("noise")


def test_noise_has_the_published_strength():
  grey = np.full((50, 32, 32, 3), 128, np.uint8)
  assert corrupt(grey, "gaussian_noise", 5).std() == pytest.approx(255 * 0.10, rel=0.02)
  # Of a Poisson number with mean n, the standard deviation is its root.
  assert corrupt(grey, "shot_noise", 5).std() == pytest.approx(255 * np.sqrt(128 / 255 / 50), rel=0.02)
  salted = corrupt(grey, "impulse_noise", 5)
  assert (salted == 255).mean() == pytest.approx(0.035, rel=0.1)
  assert (salted == 0).mean() == pytest.approx(0.035, rel=0.1)


def test_deterministic_corruptions_by_hand():
  image = np.zeros((1, 8, 8, 3), np.uint8)
  image[0, 3, 3] = 100, 50, 200
  found = corrupt(image, "brightness", 5)
  np.testing.assert_array_equal(found[0, 0, 0], [76, 76, 76])  # black becomes 0.3 of white
  np.testing.assert_array_equal(
    found[0, 3, 3], [128, 64, 255]
  )  # value clips at white, hue and saturation stay
  found = corrupt(image, "contrast", 5)
  mean = np.array([100, 50, 200]) / 64
  np.testing.assert_allclose(found[0, 3, 3], 0.15 * np.array([100, 50, 200]) + 0.85 * mean, atol=0.5)
  point = np.zeros((1, 9, 9, 1), np.uint8)
  point[0, 4, 4] = 255
  plus = corrupt(point, "defocus_blur", 4)[0, :, :, 0]  # a disk of radius 1 is a plus of five pixels
  assert np.count_nonzero(plus) == 5 and plus[4, 4] == 51
  bell = corrupt(point, "gaussian_blur", 5)[0, :, :, 0]
  assert bell[4, 4] == round(255 / (2 * np.pi)) and (bell == bell.T).all()


def test_jpeg_compression_equals_pillow(photos):
  file = io.BytesIO()
  Image.fromarray(photos[7]).save(file, "JPEG", quality=40)
  np.testing.assert_array_equal(corrupt(photos[7:8], "jpeg_compression", 5)[0], np.asarray(Image.open(file)))


def test_pixelate_leaves_boxes():
  noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1)).astype(np.uint8)
  found = corrupt(noise, "pixelate", 5)  # 20 of 32 pixels are left
  assert all(len(np.unique(one[:, :, 0], axis=0)) == 20 for one in found)
