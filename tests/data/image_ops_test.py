"""Tests of data/image_ops.py against Pillow, and of their tables and histograms against NumPy."""

import functools

import jax
import numpy as np
import pytest

from operations_by_pillow import FILL, apply_with_pillow
import photographs
from smskd_jax.data import image_ops

MAGNITUDES = {
  "shear_x": [-0.99, -0.3, -0.26666668, 0.0, 0.1, 0.2, 0.3, 0.7],
  "shear_y": [-0.99, -0.3, -0.26666668, 0.0, 0.1, 0.2, 0.3, 0.7],
  "cubic_shear_x": [-0.3, -0.26666668, -0.1, 0.0, 0.03333333, 0.15, 0.23333333, 0.3],
  "cubic_shear_y": [-0.3, -0.26666668, -0.1, 0.0, 0.03333333, 0.15, 0.23333333, 0.3],
  "translate_x": [-32.0, -14.501511, -0.5, 0.0, 0.49, 1.0, 4.8338, 12.89023],
  "translate_y": [-32.0, -14.501511, -0.5, 0.0, 0.49, 1.0, 4.8338, 12.89023],
  "rotate": [-135.0, -30.0, -6.6666665, 0.0, 6.6666665, 18.0, 45.0, 90.0],
  "posterize": [1.0, 2.0, 3.0, 4.0, 5.0, 6.7, 7.0, 8.0],
  "solarize": [0.0, 28.444445, 110.5, 113.77778, 128.0, 199.11111, 255.0, 256.0],
}
FACTORS = [0.0, 0.1, 0.37, 0.9, 1.0, 1.3, 1.6, 1.9]  # of enhancements
IMAGES = {"rgb": photographs.rgb, "grey": photographs.grey}
ROUNDED = {
  *image_ops.CUBIC_OPS,
  *image_ops.ENHANCE_OPS,
  "autocontrast",
  "equalize",
}  # equal to one grey level


@functools.cache
def compiled(op_names):
  return jax.jit(functools.partial(image_ops.apply_ops, op_names=op_names, fill=FILL))


@pytest.fixture(scope="module", params=IMAGES)
def all_ops(request):
  """Images, and by operation magnitudes and results; all operations in one call."""
  image = IMAGES[request.param]()
  names, count = image_ops.OP_NAMES, len(image)
  op_index = np.repeat(np.arange(len(names)), count)
  magnitude = np.concatenate([np.resize(np.float32(MAGNITUDES.get(n, FACTORS)), count) for n in names])
  result = np.asarray(compiled(names)(np.tile(image, (len(names), 1, 1, 1)), op_index, magnitude))
  magnitudes, results = (
    dict(zip(names, np.split(array, len(names)), strict=True)) for array in (magnitude, result)
  )
  return image, magnitudes, results


@pytest.mark.parametrize("name", image_ops.OP_NAMES)
def test_op_equals_pillow(all_ops, name):
  images, magnitudes, results = all_ops
  expected = np.stack([apply_with_pillow(name, *pair) for pair in zip(images, magnitudes[name], strict=True)])
  difference = np.abs(results[name].astype(int) - expected)
  if name in ROUNDED:
    assert difference.max() <= 1 and difference.mean() < 0.01
  else:
    np.testing.assert_array_equal(results[name], expected)
  changes_nothing = name == "identity" or (name == "color" and images.shape[-1] == 1)
  assert (results[name] != images).any() != changes_nothing


def test_rotation_by_any_angle_equals_pillow():
  image = photographs.rgb()
  angles = np.random.default_rng(0).uniform(-180, 180, len(image)).astype(np.float32)
  rotated = compiled(("rotate",))(image, np.zeros(len(image), int), angles)
  expected = np.stack([apply_with_pillow("rotate", *pair) for pair in zip(image, angles, strict=True)])
  # Coordinates on the border of two pixels may differ: the sine is in single precision.
  assert np.mean(rotated != expected) < 1e-3


def test_autocontrast_of_all_pairs_of_levels_is_within_one_level():
  low, high = (ends.astype(np.uint8) for ends in np.triu_indices(256, 1))
  image = np.stack([low, high], axis=1)[:, None, :, None]
  table = np.asarray(jax.jit(image_ops.autocontrast)(image, None))[:, 0]
  low, high = low[:, None].astype(int), high[:, None].astype(int)
  expected = np.clip(255 * (np.arange(256) - low) // (high - low), 0, 255)
  assert np.abs(table - expected).max() <= 1 and np.mean(table != expected) < 1e-3


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_constant_channels_are_unchanged(name):
  image = np.full((2, 8, 8, 3), 77, np.uint8)
  image[1, :, :, 1] = np.arange(64).reshape(8, 8)
  result = np.asarray(image_ops.apply_ops(image, np.zeros(2, int), np.zeros(2), op_names=(name,)))
  expected = np.stack([apply_with_pillow(name, x, 0) for x in image])
  assert np.abs(result.astype(int) - expected).max() <= 1
  np.testing.assert_array_equal(result[..., ::2], image[..., ::2])


def test_histogram_equals_bincount():
  image = photographs.rgb()[:4]
  expected = [[np.bincount(x[..., c].ravel(), minlength=256) for c in range(3)] for x in image]
  np.testing.assert_array_equal(image_ops.histogram(image), expected)


@pytest.mark.parametrize("names", [("equalize",), ("color", "sharpness"), ("cubic_shear_x", "rotate")])
def test_results_do_not_depend_on_the_other_names(all_ops, names):
  images, magnitudes, results = all_ops
  op_index = np.arange(len(images)) % len(names)
  rows = np.arange(len(images))
  magnitude = np.stack([magnitudes[name] for name in names])[op_index, rows]
  expected = np.stack([results[name] for name in names])[op_index, rows]
  np.testing.assert_array_equal(compiled(names)(images, op_index, magnitude), expected)


def test_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="unknown operations.*blur.*known: identity, shear_x"):
    image_ops.apply_ops(photographs.rgb(), np.zeros(24, int), np.zeros(24), op_names=("blur",))
