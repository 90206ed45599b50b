"""Tests of data/operations.py, and of the warps, tables and blends that it is made of: all against Pillow."""

import platform

import jax
import numpy as np
import pytest

from operations_by_pillow import FILL, apply_with_pillow
import photographs
from smskd_jax.data import enhance_ops, lut_ops, operations

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
FACTORS = [0.0, 0.1, 0.37, 0.9, 1.0, 1.3, 1.6, 1.9]  # where a product is a whole number, rounding shows
IMAGES = {"rgb": photographs.rgb, "grey": photographs.grey}


@pytest.fixture(scope="module", params=IMAGES)
def everything(request):
  """All operations on all images in one call: by name, the images, magnitudes and results."""
  image = IMAGES[request.param]()
  names, count = operations.OP_NAMES, len(image)
  choice = np.repeat(np.arange(len(names)), count)
  magnitude = np.concatenate([np.resize(np.float32(MAGNITUDES.get(n, FACTORS)), count) for n in names])
  apply = jax.jit(lambda *arrays: operations.apply_ops(*arrays, op_names=names, fill=FILL))
  result = np.asarray(apply(np.tile(image, (len(names), 1, 1, 1)), choice, magnitude))
  split = lambda array: dict(zip(names, np.split(array, len(names)), strict=True))
  return image, split(magnitude), split(result)


@pytest.mark.parametrize("name", operations.OP_NAMES)
def test_equals_pillow(everything, name):
  images, magnitudes, results = everything
  expected = np.stack([apply_with_pillow(name, *pair) for pair in zip(images, magnitudes[name], strict=True)])
  difference = np.abs(results[name].astype(int) - expected)
  if name.startswith(
    "cubic"
  ):  # single precision: a level that is nearly whole may be cut off to the one below
    assert difference.max() <= 1 and difference.mean() < 0.01
  elif name in enhance_ops.ENHANCE_OPS and platform.machine() != "x86_64":
    assert difference.max() <= 1  # elsewhere Pillow itself may round its sums otherwise
  else:
    np.testing.assert_array_equal(results[name], expected)
  nothing_to_do = name == "identity" or (name == "color" and images.shape[-1] == 1)
  assert (results[name] != images).any() != nothing_to_do


def test_turns_by_any_angle_like_pillow():
  image = photographs.rgb()
  angles = np.random.default_rng(0).uniform(-180, 180, len(image)).astype(np.float32)
  turned = operations.apply_ops(image, np.zeros(len(image), int), angles, op_names=("rotate",), fill=FILL)
  expected = np.stack([apply_with_pillow("rotate", *pair) for pair in zip(image, angles, strict=True)])
  assert (
    np.mean(turned != expected) < 1e-3
  )  # a place on the border of two pixels, and a sine in single precision


def test_autocontrast_has_pillows_rounding_for_all_levels():
  low, high = (ends.astype(np.uint8) for ends in np.triu_indices(256, 1))
  image = np.stack([low, high], axis=1)[:, None, :, None]
  table = np.asarray(jax.jit(lut_ops.autocontrast)(image, None))[:, 0]
  scale = 255.0 / (high.astype(float) - low)
  exact = np.arange(256) * scale[:, None] + (-low.astype(float) * scale)[:, None]
  inside = (np.arange(256) >= low[:, None]) & (np.arange(256) <= high[:, None])
  np.testing.assert_array_equal(table[inside], exact.astype(int)[inside])
  assert (table[np.arange(len(high)), high] == 254).any()


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_flat_channels_stay(name):
  image = np.full((2, 8, 8, 3), 77, np.uint8)
  image[1, :, :, 1] = np.arange(64).reshape(8, 8)
  result = operations.apply_ops(image, np.zeros(2, int), np.zeros(2), op_names=(name,))
  np.testing.assert_array_equal(result, np.stack([apply_with_pillow(name, x, 0) for x in image]))
  np.testing.assert_array_equal(result[0], image[0])


def test_histogram_counts():
  image = photographs.rgb()[:4]
  expected = [[np.bincount(x[..., c].ravel(), minlength=256) for c in range(3)] for x in image]
  np.testing.assert_array_equal(lut_ops.histogram(image), expected)


def test_blend_rounds_twice():
  blend = jax.jit(enhance_ops.blend)
  levels = np.arange(256)
  image, degenerate = (grid.astype(np.uint8).reshape(1, 256, 256, 1) for grid in np.meshgrid(levels, levels))
  for factor in np.float32([0.1, 0.7, 1.7, 1.9]):
    product = factor * (image.astype(np.float32) - degenerate.astype(np.float32))
    expected = np.clip(degenerate.astype(np.float32) + product, 0, 255).astype(np.uint8)
    blended = blend(degenerate.astype(np.int32), image, np.full(1, factor))
    np.testing.assert_array_equal(blended, expected)


@pytest.mark.parametrize("names", [("equalize",), ("color", "sharpness"), ("cubic_shear_x", "rotate")])
def test_fewer_names_give_the_same(everything, names):
  images, magnitudes, results = everything
  choice = np.arange(len(images)) % len(names)
  pick = lambda of: np.choose(
    choice.reshape(-1, *[1] * (of[names[0]].ndim - 1)), [of[name] for name in names]
  )
  apply = jax.jit(lambda *arrays: operations.apply_ops(*arrays, op_names=names, fill=FILL))
  np.testing.assert_array_equal(apply(images, choice, pick(magnitudes)), pick(results))


def test_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="unknown operations.*blur.*known: identity, shear_x"):
    operations.apply_ops(photographs.rgb(), np.zeros(24, int), np.zeros(24), op_names=("blur",))
