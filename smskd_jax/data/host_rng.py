"""Random numbers of the host, each a function of a seed and a place: nothing is carried, so any may be drawn first.

NumPy promises to keep the bits of its generators, and nothing of what it draws from them (NEP 19): numbers are made of
the bits here. The generator is Philox4x64-10 of Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1,
2, 3", SC 2011.
"""

import numpy as np

Counter = tuple[int, int, int]  # each at least 0 and less than 2**64

# What numbers are for: those of one purpose do not depend on how many are drawn for another.
SHUFFLE_STREAM, CROP_STREAM = range(2)


def random_bits(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """[count], uint64."""
  key_words, counter_words = (np.array(words, np.uint64) for words in ((seed, stream), (0, *counter)))
  return np.random.Philox(key=key_words, counter=counter_words).random_raw(count)


def uniform(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """Numbers in [0, 1): [count], float64."""
  return (random_bits(seed, stream, counter, count) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, stream: int, counter: Counter, count: int) -> np.ndarray:
  """An order of so many: [count], int64."""
  return np.argsort(random_bits(seed, stream, counter, count), kind="stable")
