"""Tests of data/policies.py."""

import jax
import numpy as np
import pytest

from operations_by_pillow import apply_with_pillow
import photographs
from smskd_jax.data import policies

KEY = jax.random.key(11)
NUM_SAMPLES = np.arange(50_000)
SIGNED = {"shear_x", "shear_y", "cubic_shear_y", "translate_x", "translate_y"}
BLENDS = {"color", "contrast", "brightness", "sharpness"}


def drawn(draw, index=NUM_SAMPLES, key=KEY, **options):
  """The names of all operations, in order, and by name the magnitudes: what a draw says, read back."""
  names = draw(key, index[:1], **options).names
  choice, magnitude = jax.jit(lambda key, index: draw(key, index, **options)[1:])(key, index)
  return np.asarray(names)[choice], np.asarray(magnitude)


def within(count, n, probability, deviations=4.5):
  """Whether a count among n draws is as likely as a probability says."""
  return abs(count - n * probability) <= deviations * np.sqrt(n * probability * (1 - probability)) + 1e-9


@pytest.fixture(scope="module")
def auto():
  return drawn(policies.sample_autoaugment, h=28, w=32)


def test_autoaugment_draws_each_pair_as_often_as_the_policy_says(auto):
  expected = {}
  for first, second in policies.AUTOAUGMENT_CIFAR10:
    for a, p in ((first[0], first[1]), ("identity", 1 - first[1])):
      for b, q in ((second[0], second[1]), ("identity", 1 - second[1])):
        expected[a, b] = expected.get((a, b), 0) + p * q / 25
  found = {tuple(pair): n for pair, n in zip(*np.unique(auto[0], axis=0, return_counts=True), strict=True)}
  assert found.keys() <= expected.keys()
  for pair, probability in expected.items():
    assert within(found.get(pair, 0), len(NUM_SAMPLES), probability), pair


def test_autoaugment_has_the_magnitudes_of_the_policy(auto):
  strengths = {
    "cubic_shear_y": {0.3 * 8 / 9, 0.3 * 7 / 9},
    "translate_x": {150 / 331 * 32, 150 / 331 * 32 * 8 / 9},
    "translate_y": {150 / 331 * 28, 150 / 331 * 28 * 3 / 9},
    "rotate": {30 * 2 / 9},
    "posterize": {5.0},
    "solarize": {256 * 7 / 9, 256 * 1 / 9, 256 * 4 / 9, 256 * 6 / 9},
    "color": {0.3, 0.7, 0.8, 0.9, 0.0},
    "contrast": {0.6, 0.7},
    "brightness": {0.7, 0.9, 0.6, 0.3},
    "sharpness": {0.1, 0.3, 0.9, 0.5, 0.6},
  }
  names, magnitudes = auto
  for name, strength in strengths.items():
    found = magnitudes[names == name]
    signs = (-1, 1) if name in SIGNED | BLENDS else (1,)
    expected = {(1 if name in BLENDS else 0) + sign * s for sign in signs for s in strength}
    np.testing.assert_allclose(np.unique(found), np.unique(np.float32(sorted(expected))), rtol=1e-6)
    if len(signs) == 2:
      strong = found[np.abs(found - (name in BLENDS)) > 1e-6]
      assert within(np.sum(strong > (name in BLENDS)), len(strong), 0.5), name


def test_autoaugment_equals_pillow_for_the_same_draws():
  image, index = np.tile(photographs.rgb(), (8, 1, 1, 1)), NUM_SAMPLES[:192]
  h, w = image.shape[1:3]
  names, magnitudes = drawn(policies.sample_autoaugment, index, h=h, w=w)
  result = np.asarray(jax.jit(policies.autoaugment)(KEY, image, index))
  expected = image.copy()
  for i in range(len(image)):
    for name, magnitude in zip(names[i], magnitudes[i], strict=True):
      expected[i] = apply_with_pillow(name, expected[i], magnitude)
  rounded = (names == "cubic_shear_y").any(1)
  np.testing.assert_array_equal(result[~rounded], expected[~rounded])
  assert np.abs(result[rounded].astype(int) - expected[rounded]).mean() < 0.1
  assert len(np.unique(names)) == 14 and 0 < rounded.sum() < 20


def test_randaugment_draws_fourteen_evenly_with_signs():
  names, magnitudes = drawn(policies.sample_randaugment, h=28, w=32, num_ops=2, magnitude=10)
  pairs, counts = np.unique(names, axis=0, return_counts=True)
  assert len(pairs) == 14**2
  assert all(within(n, len(NUM_SAMPLES), 1 / 14**2) for n in counts)
  strengths = {
    "shear_x": 0.1,
    "translate_x": 4,
    "translate_y": 4,
    "rotate": 10,
    "color": 0.3,
    "sharpness": 0.3,
  }
  for name, strength in strengths.items():
    middle, found = float(name in BLENDS), magnitudes[names == name]
    np.testing.assert_allclose(np.unique(found), [middle - strength, middle + strength], rtol=1e-6)
    assert within(np.sum(found > middle), len(found), 0.5)
  assert set(magnitudes[names == "posterize"]) == {7} and set(magnitudes[names == "solarize"]) == {170}


def test_randaugment_of_no_magnitude_draws_what_changes_nothing():
  names, magnitudes = drawn(
    policies.sample_randaugment, NUM_SAMPLES[:1000], h=32, w=32, num_ops=2, magnitude=0
  )
  neutral = {"posterize": 8, "solarize": 255} | dict.fromkeys(BLENDS, 1)
  np.testing.assert_array_equal(magnitudes, np.vectorize(lambda name: neutral.get(name, 0))(names))


def test_trivialaugment_draws_one_of_fourteen_and_of_31():
  names, magnitudes = drawn(policies.sample_trivialaugment)
  assert names.shape == (len(NUM_SAMPLES), 1)
  found, counts = np.unique(names, return_counts=True)
  assert set(found) == set(policies.RANDAUGMENT_OPS)
  assert all(within(n, len(NUM_SAMPLES), 1 / 14) for n in counts)
  for name, end in {"shear_x": 0.99, "translate_y": 32, "rotate": 135, "contrast": 0.99}.items():
    middle, own = float(name in BLENDS), magnitudes[names == name]
    np.testing.assert_allclose([own.min(), own.max()], [middle - end, middle + end], rtol=1e-5, atol=1e-6)
    assert len(np.unique(own)) == 61
    assert within(np.sum(np.abs(own - middle) < 1e-6), len(own), 1 / 31)
  assert set(magnitudes[names == "posterize"]) == set(range(2, 9))
  assert set(magnitudes[names == "translate_x"]) == set(range(-32, 33)) - {
    s * n for s in (-1, 1) for n in range(33) if n not in {int(round(32 * k / 30, 6)) for k in range(31)}
  }


def test_fixmatch_draws_magnitudes_evenly():
  names, magnitudes = drawn(policies.sample_fixmatch, h=20, w=30)
  ends = {"posterize": (4, 8), "solarize": (0, 256), "rotate": (-30, 30), "shear_y": (-0.3, 0.3)}
  ends |= {"translate_x": (-9, 9), "translate_y": (-6, 6), "color": (0.05, 0.95)}
  for name, (low, high) in ends.items():
    own = magnitudes[names == name]
    assert within(len(own), names.size, 1 / 14)
    deciles = np.histogram(own, np.linspace(low, high, 11))[0]
    assert deciles.sum() == len(own) and all(within(n, len(own), 0.1) for n in deciles)


@pytest.mark.parametrize(
  ("options", "message"),
  [({"num_ops": 0}, "num_ops must be at least 1"), ({"magnitude": 31}, "magnitude must be a whole number")],
)
def test_randaugment_refuses_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    policies.randaugment(KEY, photographs.rgb(), NUM_SAMPLES[:24], **options)
