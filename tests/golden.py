"""The golden vectors of public implementations: where they are, and how to read them.

They lie in tests/golden, whose README describes them, or in the folder that SMSKD_GOLDEN names.
"""

from collections.abc import Collection, Iterable
import json
import os
import pathlib
import zlib

import numpy as np
import pytest

_DEFAULT = pathlib.Path(__file__).resolve().with_suffix("")
FOLDER = pathlib.Path(os.environ.get("SMSKD_GOLDEN", _DEFAULT))


def index(room, name="index.json"):
  """An index of `losses`, `models` or `training`; empty where there are no vectors."""
  path = FOLDER / room / name
  return json.loads(path.read_text()) if path.exists() else {}


def load(room, file):
  """The arrays of one case."""
  with np.load(FOLDER / room / file) as arrays:
    return dict(arrays)


def params(cases: Iterable[tuple[str, object]], slow: Collection[str] = ()):
  """Cases, as (name, case), for `pytest.mark.parametrize`; one skipped case where there are none.

  The cases named in `slow` are marked so.
  """
  found = [
    pytest.param(case, id=name, marks=[pytest.mark.slow] if name in slow else []) for name, case in cases
  ]
  absent = pytest.param(None, id="absent", marks=pytest.mark.skip(reason=f"no golden vectors in {FOLDER}"))
  return found or [absent]


def fill(key, shape, salt):
  """The value of the PyTorch tensor `key` in all golden networks. The order of the draws is part of it."""
  r = np.random.RandomState((zlib.crc32(key.encode()) + salt) & 0x7FFFFFFF)
  size = int(np.prod(shape))
  if key.endswith("num_batches_tracked"):
    return np.array(0)
  if key.endswith("running_var"):
    return 0.5 + r.random_sample(size).reshape(shape)
  if len(shape) == 1 and key.endswith("weight"):
    return 0.25 + 0.5 * r.random_sample(size).reshape(shape)
  scale = 0.1 if len(shape) == 1 else np.sqrt(2.0 / (size // shape[0]))
  return scale * r.standard_normal(size).reshape(shape)


def state_dict(shapes, salt):
  """A whole filled checkpoint, from {key: shape}."""
  return {key: fill(key, shape, salt) for key, shape in shapes.items()}
