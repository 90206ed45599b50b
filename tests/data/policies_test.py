"""Tests of data/policies.py."""

import jax
import numpy as np
import pytest

from operations_by_pillow import apply_with_pillow
import photographs
from smskd_jax.data import policies

KEY = jax.random.key(11)
INDEX = np.arange(50_000)
SIGNED = {"shear_x", "shear_y", "cubic_shear_y", "translate_x", "translate_y"}
ENHANCEMENTS = {"color", "contrast", "brightness", "sharpness"}


def sample(policy, index=INDEX, **options):
  """Names and magnitudes of the sampled operations, [b, n] each."""
  names = policy(KEY, index[:1], **options).op_names
  op_index, magnitude = jax.jit(lambda key, index: policy(key, index, **options)[1:])(KEY, index)
  return np.asarray(names)[op_index], np.asarray(magnitude)


def within(count, n, probability, deviations=4.5):
  """True if a count among n samples agrees with a probability."""
  return abs(count - n * probability) <= deviations * np.sqrt(n * probability * (1 - probability)) + 1e-9


@pytest.fixture(scope="module")
def auto():
  return sample(policies.sample_autoaugment, h=28, w=32)


def test_autoaugment_samples_each_pair_with_the_probability_of_the_policy(auto):
  expected = {}
  for first, second in policies.AUTOAUGMENT_CIFAR10:
    for a, p in ((first[0], first[1]), ("identity", 1 - first[1])):
      for b, q in ((second[0], second[1]), ("identity", 1 - second[1])):
        expected[a, b] = expected.get((a, b), 0) + p * q / 25
  found = {tuple(pair): n for pair, n in zip(*np.unique(auto[0], axis=0, return_counts=True), strict=True)}
  assert found.keys() <= expected.keys()
  for pair, probability in expected.items():
    assert within(found.get(pair, 0), len(INDEX), probability), pair


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
    signs = (-1, 1) if name in SIGNED | ENHANCEMENTS else (1,)
    expected = {(1 if name in ENHANCEMENTS else 0) + sign * s for sign in signs for s in strength}
    np.testing.assert_allclose(np.unique(found), np.unique(np.float32(sorted(expected))), rtol=1e-6)
    if len(signs) == 2:
      strong = found[np.abs(found - (name in ENHANCEMENTS)) > 1e-6]
      assert within(np.sum(strong > (name in ENHANCEMENTS)), len(strong), 0.5), name


def test_autoaugment_equals_pillow_for_the_same_samples():
  image, index = np.tile(photographs.rgb(), (8, 1, 1, 1)), INDEX[:192]
  h, w = image.shape[1:3]
  names, magnitudes = sample(policies.sample_autoaugment, index, h=h, w=w)
  result = np.asarray(jax.jit(policies.autoaugment)(KEY, image, index))
  expected = image.copy()
  for i in range(len(image)):
    for name, magnitude in zip(names[i], magnitudes[i], strict=True):
      expected[i] = apply_with_pillow(name, expected[i], magnitude)
  # Single operations are within one grey level; a second one may amplify the difference, or move a bin of equalize.
  difference = np.abs(result.astype(int) - expected)
  assert difference.mean() < 0.02 and np.mean(difference.max((1, 2, 3)) <= 1) > 0.9
  assert len(np.unique(names)) == 14


def test_randaugment_samples_14_operations_evenly_with_signs():
  names, magnitudes = sample(policies.sample_randaugment, h=28, w=32, num_ops=2, magnitude=10)
  pairs, counts = np.unique(names, axis=0, return_counts=True)
  assert len(pairs) == 14**2
  assert all(within(n, len(INDEX), 1 / 14**2) for n in counts)
  strengths = {
    "shear_x": 0.1,
    "translate_x": 4,
    "translate_y": 4,
    "rotate": 10,
    "color": 0.3,
    "sharpness": 0.3,
  }
  for name, strength in strengths.items():
    middle, sampled = float(name in ENHANCEMENTS), magnitudes[names == name]
    np.testing.assert_allclose(np.unique(sampled), [middle - strength, middle + strength], rtol=1e-6)
    assert within(np.sum(sampled > middle), len(sampled), 0.5)
  assert set(magnitudes[names == "posterize"]) == {7} and set(magnitudes[names == "solarize"]) == {170}


def test_randaugment_of_magnitude_0_samples_neutral_magnitudes():
  names, magnitudes = sample(policies.sample_randaugment, INDEX[:1000], h=32, w=32, num_ops=2, magnitude=0)
  neutral = {"posterize": 8, "solarize": 255} | dict.fromkeys(ENHANCEMENTS, 1)
  np.testing.assert_array_equal(magnitudes, np.vectorize(lambda name: neutral.get(name, 0))(names))


def test_trivialaugment_samples_one_of_14_operations_and_of_31_levels():
  names, magnitudes = sample(policies.sample_trivialaugment)
  assert names.shape == (len(INDEX), 1)
  found, counts = np.unique(names, return_counts=True)
  assert set(found) == set(policies.RANDAUGMENT_OPS)
  assert all(within(n, len(INDEX), 1 / 14) for n in counts)
  for name, end in {"shear_x": 0.99, "translate_y": 32, "rotate": 135, "contrast": 0.99}.items():
    middle, sampled = float(name in ENHANCEMENTS), magnitudes[names == name]
    np.testing.assert_allclose(
      [sampled.min(), sampled.max()], [middle - end, middle + end], rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(sampled)) == 61
    assert within(np.sum(np.abs(sampled - middle) < 1e-6), len(sampled), 1 / 31)
  assert set(magnitudes[names == "posterize"]) == set(range(2, 9))
  assert set(magnitudes[names == "translate_x"]) == set(range(-32, 33)) - {
    s * n for s in (-1, 1) for n in range(33) if n not in {int(round(32 * k / 30, 6)) for k in range(31)}
  }


def test_fixmatch_samples_magnitudes_evenly():
  names, magnitudes = sample(policies.sample_fixmatch, h=20, w=30)
  ends = {"posterize": (4, 8), "solarize": (0, 256), "rotate": (-30, 30), "shear_y": (-0.3, 0.3)}
  ends |= {"translate_x": (-9, 9), "translate_y": (-6, 6), "color": (0.05, 0.95)}
  for name, (low, high) in ends.items():
    sampled = magnitudes[names == name]
    assert within(len(sampled), names.size, 1 / 14)
    deciles = np.histogram(sampled, np.linspace(low, high, 11))[0]
    assert deciles.sum() == len(sampled) and all(within(n, len(sampled), 0.1) for n in deciles)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_ops": 0}, "num_ops must be a positive integer"),
    ({"magnitude": 31}, "magnitude must be a whole number"),
  ],
)
def test_randaugment_refuses_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    policies.randaugment(KEY, photographs.rgb(), INDEX[:24], **options)
