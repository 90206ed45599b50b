"""Tests of data/host_rng.py."""

import numpy as np
import pytest

from smskd_jax.data import host_rng


def test_bits_equal_the_published_generator():
  """Known answers of Random123, kat_vectors, philox4x64 of ten rounds: a counter of zeros and a key of zeros.

  NumPy's generator steps before it draws: its counter is one less.
  """
  expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
  generator = np.random.Philox(key=np.zeros(2, np.uint64), counter=np.full(4, 2**64 - 1, np.uint64))
  assert [int(x) for x in generator.random_raw(4)] == expected
  generator = np.random.Philox(key=np.array([5, 1], np.uint64), counter=np.array([0, 2, 3, 4], np.uint64))
  np.testing.assert_array_equal(host_rng.random_bits(5, 1, (2, 3, 4), 6), generator.random_raw(6))


def test_bits_depend_on_seed_stream_and_counter():
  first = host_rng.random_bits(5, 0, (1, 2, 3), 8)
  np.testing.assert_array_equal(first[:3], host_rng.random_bits(5, 0, (1, 2, 3), 3))
  large = 2**64 - 1
  assert (
    host_rng.random_bits(large, 0, (0, 0, 0), 4) != host_rng.random_bits(large - 1, 0, (0, 0, 0), 4)
  ).all()
  others = [
    (6, 0, (1, 2, 3)),
    (5, 1, (1, 2, 3)),
    (5, 0, (2, 1, 3)),
    (5, 0, (1, 2, 4)),
    (large, 0, (0, 0, 0)),
  ]
  assert not any(np.isin(host_rng.random_bits(*other, 8), first).any() for other in others)


def test_uniform_covers_the_unit_interval_evenly():
  uniforms = host_rng.uniform(1, 0, (0, 0, 0), 100_000)
  assert uniforms.min() >= 0 and uniforms.max() < 1
  assert np.histogram(uniforms, 10, (0, 1))[0] == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_permutation_holds_each_number_once(count):
  order = host_rng.permutation(3, 0, (7, 0, 0), count)
  assert sorted(order) == list(range(count))
  if count == 1000:
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 0.1
