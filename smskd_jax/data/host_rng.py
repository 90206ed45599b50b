"""Counter-based random numbers on the host: functions of seed, stream and counter.

They have no state.

NumPy guarantees the bits of its generators, but not the distributions that it draws from them (NEP 19); therefore
numbers are computed from the bits here. Generator: Philox4x64-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import numpy as np

Counter = tuple[int, int, int]  # each in [0, 2**64)

# Streams are independent: drawing more numbers from one does not change another.
SHUFFLE_STREAM, CROP_STREAM = range(2)


def random_bits(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """Random bits: [count], uint64."""
  key, words = (np.array(x, np.uint64) for x in ((seed, stream), (0, *counter)))
  return np.random.Philox(key=key, counter=words).random_raw(count)


def uniform(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """Uniform numbers in [0, 1): [count], float64."""
  return (random_bits(seed, stream, counter, count) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """Permutation of range(count): [count], int64."""
  return np.argsort(random_bits(seed, stream, counter, count), kind="stable")
