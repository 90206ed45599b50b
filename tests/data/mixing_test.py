"""Tests of data/mixing.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import photographs
from smskd_jax.data import mixing

KEYS = [jax.random.key(seed) for seed in range(8)]
TARGET = np.eye(24, dtype=np.float32)  # every example a class: the target says who has been mixed
mixup = jax.jit(mixing.mixup, static_argnames="alpha")
cutmix = jax.jit(mixing.cutmix, static_argnames=("alpha", "probability"))


def parts(target):
  """Of each row, the partner and its part. A row alone has itself for a partner."""
  own = np.diag(target)
  other = target - np.diag(own)
  partner = np.where(other.max(1) > 0, other.argmax(1), np.arange(len(target)))
  return partner, other.max(1)


@pytest.mark.parametrize("key", KEYS)
def test_mixup_mixes_images_and_targets_alike(key):
  image = photographs.rgb()
  mixed, target = (np.asarray(x) for x in mixup(key, image, TARGET))
  assert mixed.dtype == np.float32
  np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(mixed, np.einsum("ij,jhwc->ihwc", target, image), rtol=1e-5, atol=1e-3)
  partner, part = parts(target)
  assert len(set(partner)) == len(image)  # a permutation
  assert np.ptp(part[part > 0]) < 1e-6  # one share a batch


@pytest.mark.parametrize("key", KEYS)
def test_cutmix_puts_a_rectangle_of_the_partner_into_each_image(key):
  image = photographs.rgb()
  mixed, target = (np.asarray(x) for x in cutmix(key, image, TARGET))
  assert mixed.dtype == np.uint8
  partner, part = parts(target)
  assert len(set(partner)) == len(image)
  from_partner = (mixed == image[partner]).all((0, 3))
  from_own = (mixed == image).all((0, 3))
  assert (from_own | from_partner).all()
  rows, columns = from_partner.any(1), from_partner.any(0)
  np.testing.assert_array_equal(from_partner, rows[:, None] & columns)
  np.testing.assert_allclose(part[part > 0], from_partner.mean(), rtol=1e-5)


def test_the_share_is_beta():
  image, target = np.ones((2, 1, 1, 1), np.float32), np.eye(2, dtype=np.float32)
  keys = jax.random.split(KEYS[0], 4000)
  mix = jax.jit(jax.vmap(lambda key: [mixing.mixup(key, image, target, alpha=a)[1] for a in (0.2, 1.0)]))
  for alpha, targets in zip((0.2, 1.0), mix(keys), strict=True):
    own, other = np.asarray(targets)[:, 0].T
    share = own[other > 0]  # the other half are their own partners
    np.testing.assert_allclose(len(share), 2000, rtol=0.1)
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.04)
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)


def test_cutmix_leaves_some_batches():
  image = photographs.rgb()[:, :4, :4]
  targets = [cutmix(key, image, TARGET, probability=0.3)[1] for key in jax.random.split(KEYS[0], 150)]
  untouched = np.mean([np.array_equal(target, TARGET) for target in targets])
  assert 0.6 < untouched < 0.85


@pytest.mark.parametrize("mix", [mixing.mixup, mixing.cutmix])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32, jnp.bfloat16])
def test_types_under_strict_promotion(mix, dtype):
  image, target = jax.ShapeDtypeStruct((24, 9, 7, 3), dtype), jax.ShapeDtypeStruct((24, 5), jnp.float32)
  with jax.numpy_dtype_promotion("strict"):
    mixed = jax.eval_shape(mix, KEYS[0], image, target)
  whole = mix is mixing.mixup and dtype == jnp.uint8
  assert mixed == (jax.ShapeDtypeStruct(image.shape, jnp.float32 if whole else dtype), target)


@pytest.mark.parametrize("mix", [mixing.mixup, mixing.cutmix])
def test_one_device_equals_eight(mix):
  image = photographs.rgb()
  whole = {mixing.mixup: mixup, mixing.cutmix: cutmix}[mix](KEYS[3], image, TARGET)
  spread = jax.pmap(functools.partial(mix, axis_name="batch"), axis_name="batch", in_axes=(None, 0, 0))
  split = lambda x: x.reshape(8, 3, *x.shape[1:])
  eight = spread(KEYS[3], split(image), split(TARGET))
  for one, many in zip(whole, eight, strict=True):
    np.testing.assert_allclose(np.asarray(many).reshape(one.shape), one, rtol=1e-6)


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
