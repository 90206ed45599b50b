"""Tests of data/mixing.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photographs
from smskd_jax.data import mixing

KEYS = [jax.random.key(seed) for seed in range(8)]
TARGET = np.eye(24, dtype=np.float32)  # one class per example: the target shows the partner
mixup = jax.jit(mixing.mixup, static_argnames="alpha")
cutmix = jax.jit(mixing.cutmix, static_argnames=("alpha", "probability"))


def partners(target):
  """Partner of each row, and its weight; a row without one is its own partner."""
  other = target - np.diag(np.diag(target))
  partner = np.where(other.max(1) > 0, other.argmax(1), np.arange(len(target)))
  return partner, other.max(1)


@pytest.mark.parametrize("key", KEYS)
def test_mixup_mixes_images_and_targets_by_one_weight(key):
  image = photographs.rgb()
  mixed, target = (np.asarray(x) for x in mixup(key, image, TARGET))
  assert mixed.dtype == np.float32
  np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(mixed, np.einsum("ij,jhwc->ihwc", target, image), rtol=1e-5, atol=1e-3)
  partner, weight = partners(target)
  assert len(set(partner)) == len(image)  # a permutation
  assert np.ptp(weight[weight > 0]) < 1e-6  # one weight per batch


@pytest.mark.parametrize("key", KEYS)
def test_cutmix_pastes_a_rectangle_of_the_partner(key):
  image = photographs.rgb()
  mixed, target = (np.asarray(x) for x in cutmix(key, image, TARGET))
  assert mixed.dtype == np.uint8
  partner, weight = partners(target)
  assert len(set(partner)) == len(image)
  from_partner = (mixed == image[partner]).all((0, 3))
  unchanged = (mixed == image).all((0, 3))
  assert (unchanged | from_partner).all()
  rows, columns = from_partner.any(1), from_partner.any(0)
  np.testing.assert_array_equal(from_partner, rows[:, None] & columns)
  np.testing.assert_allclose(weight[weight > 0], from_partner.mean(), rtol=1e-5)


def test_the_mixing_weight_is_beta_distributed():
  image, target = np.ones((2, 1, 1, 1), np.float32), np.eye(2, dtype=np.float32)
  keys = jax.random.split(KEYS[0], 4000)
  mix = jax.jit(jax.vmap(lambda key: [mixing.mixup(key, image, target, alpha=a)[1] for a in (0.2, 1.0)]))
  for alpha, targets in zip((0.2, 1.0), mix(keys), strict=True):
    first, other = np.asarray(targets)[:, 0].T
    weight = first[other > 0]  # the other half are their own partners
    np.testing.assert_allclose(len(weight), 2000, rtol=0.1)
    np.testing.assert_allclose(weight.mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(weight.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)


def test_cutmix_mixes_a_batch_with_the_given_probability():
  image, target = photographs.rgb()[:2, :4, :4], np.eye(2, dtype=np.float32)
  keys = jax.random.split(KEYS[0], 4000)
  mixed = jax.vmap(lambda key: cutmix(key, image, target, probability=0.3)[1])(keys)
  # Half of the batches of two keep their order; an eighth of the rectangles are thinner than a pixel or outside.
  assert 0.08 < np.mean((np.asarray(mixed) != target).any((1, 2))) < 0.15


@pytest.mark.parametrize("mix", [mixing.mixup, mixing.cutmix])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_types_under_strict_promotion(mix, dtype):
  image, target = jax.ShapeDtypeStruct((24, 9, 7, 3), dtype), jax.ShapeDtypeStruct((24, 5), jnp.float32)
  with jax.numpy_dtype_promotion("strict"):
    mixed = jax.eval_shape(mix, KEYS[0], image, target)
  to_float = mix is mixing.mixup and dtype == jnp.uint8
  assert mixed == (jax.ShapeDtypeStruct(image.shape, jnp.float32 if to_float else dtype), target)


@pytest.mark.parametrize("mix", [mixing.mixup, mixing.cutmix])
def test_one_device_equals_eight(mix):
  image = photographs.rgb()
  one_device = {mixing.mixup: mixup, mixing.cutmix: cutmix}[mix](KEYS[3], image, TARGET)
  sharded = jax.pmap(functools.partial(mix, axis_name="batch"), axis_name="batch", in_axes=(None, 0, 0))
  eight = sharded(KEYS[3], *(x.reshape(8, 3, *x.shape[1:]) for x in (image, TARGET)))
  for expected, result in zip(one_device, eight, strict=True):
    np.testing.assert_allclose(np.asarray(result).reshape(expected.shape), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("mix", "options", "message"),
  [
    (mixing.mixup, {"alpha": 0.0}, "mixup: alpha must be a positive number"),
    (mixing.cutmix, {"alpha": -1.0}, "cutmix: alpha must be a positive number"),
    (mixing.cutmix, {"probability": 2.0}, "cutmix: probability must be a number from 0 to 1"),
  ],
)
def test_refuses_bad_options(mix, options, message):
  with pytest.raises(ValueError, match=message):
    mix(KEYS[0], photographs.rgb(), TARGET, **options)
