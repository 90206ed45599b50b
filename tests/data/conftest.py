"""Fixtures of the tests of data sources."""

import pathlib

import numpy as np
import pytest

from smskd_jax import data
from smskd_jax.errors import UserError


@pytest.fixture
def refuses(tmp_path, monkeypatch):
  """Asserts that a source is refused in one line that holds all given parts, and that nothing is written."""
  monkeypatch.chdir(tmp_path)

  def check(source, *parts, **options):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
      data.load(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 500
    for part in parts:
      assert part in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert sorted(tmp_path.rglob("*")) == before

  return check


@pytest.fixture
def arrays():
  """Arrays of a valid data set: 30 + 12 images of 3 classes."""
  rng = np.random.default_rng(0)
  return {
    "train_images": rng.integers(0, 256, (30, 8, 9, 3), np.uint8),
    "train_labels": np.arange(30) % 3,
    "test_images": rng.integers(0, 256, (12, 8, 9, 3), np.uint8),
    "test_labels": np.arange(12) % 3,
  }


@pytest.fixture
def save(tmp_path):
  """Writes arrays and returns the source that reads them."""

  def write(arrays, name="own.npz"):
    np.savez(tmp_path / name, **arrays)
    return f"npz:{pathlib.Path(tmp_path / name)}"

  return write
