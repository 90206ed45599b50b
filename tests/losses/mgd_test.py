"""Tests of losses/mgd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import mgd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Batch, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*features):
  return Outputs(None, None, features, features)


def convolve(x, kernel, bias):
  """A 3x3 convolution, padded by 1, in plain NumPy."""
  h, w = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = {(i, j): padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)}
  return sum(window @ kernel[i, j] for (i, j), window in windows.items()) + bias


def test_worked_by_hand():
  student, teacher = np.arange(8.0).reshape(2, 2, 2, 1), np.zeros((2, 2, 2, 1))
  np.testing.assert_allclose(mgd.loss(student, teacher), [14, 126])


@pytest.mark.parametrize("mask, size", [("positions", (4, 3, 1)), ("channels", (1, 1, 5))])
def test_masks_depend_on_key_and_index_alone(mask, size):
  key, index = jax.random.key(3), np.array([4, 9, 4], np.int32)

  def sample(key, index, ratio=0.4):
    return np.asarray(mgd.sample_mask(key, index, (4, 3, 5), mask_ratio=ratio, mask=mask))

  drawn = sample(key, index)
  assert drawn.shape == (3, *size) and set(np.unique(drawn)) == {0, 1}
  np.testing.assert_array_equal(drawn[0], drawn[2])
  np.testing.assert_array_equal(drawn[1:], sample(key, index[1:]))
  assert (drawn != sample(jax.random.key(4), index)).any()
  assert sample(key, index, 0.0).all() and not sample(key, index, 1.0).any()


def test_the_masked_fraction_is_the_ratio():
  index = np.arange(400, dtype=np.int32)
  drawn = mgd.sample_mask(jax.random.key(0), index, (5, 5, 2), mask_ratio=0.15, mask="positions")
  # 10000 draws: the standard error is 0.0036.
  np.testing.assert_allclose(1 - drawn.mean(), 0.15, atol=0.02)


@pytest.mark.parametrize("mask", ["positions", "channels"])
@pytest.mark.parametrize("student_channels", [5, 3])
def test_the_whole_in_numpy(mask, student_channels):
  student, teacher = maps(0, 4, 6, 3, student_channels), maps(1, 4, 3, 3, 5)
  method = mgd.method(mask_ratio=0.3, mask=mask)
  specs = jax.eval_shape(lambda: (outputs(student), (outputs(teacher),)))
  aux = method.init(jax.random.key(0), *specs, None)
  batch, key = Batch(None, None, np.arange(4, dtype=np.int32)), jax.random.key(7)
  rows, _ = method.apply(*aux, outputs(student), (outputs(teacher),), Context(batch, key))
  p = jax.tree.map(np.asarray, aux.params)
  assert ("align" in p) == (student_channels != 5)
  x = student.reshape(4, 3, 2, 3, student_channels).mean(2)  # twice as high as the teacher's map
  if "align" in p:
    x = x @ p["align"]["kernel"][0, 0] + p["align"]["bias"]
  x = x * np.asarray(mgd.sample_mask(key, batch.index, (3, 3, 5), mask_ratio=0.3, mask=mask))
  hidden = np.maximum(convolve(x, p["conv1"]["kernel"], p["conv1"]["bias"]), 0)
  generated = convolve(hidden, p["conv2"]["kernel"], p["conv2"]["bias"])
  np.testing.assert_allclose(rows, np.square(generated - teacher).sum((1, 2, 3)), rtol=1e-9)
