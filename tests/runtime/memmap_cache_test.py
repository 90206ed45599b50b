"""Tests of runtime/memmap_cache.py: what was written is there, and what was damaged is not."""

import os

import numpy as np
import pytest

from smskd_jax.runtime.memmap_cache import MemmapCache

SHAPE = 6, 3  # images, views
IMAGES, VIEWS = np.array([0, 0, 2, 5]), np.array([0, 1, 2, 0])


def values(images, views):
  return {
    "logits": (10 * images[:, None] + views[:, None] + np.arange(4) / 8).astype(np.float32),
    "embedding": np.ones((len(images), 7), np.float32) * images[:, None],
  }


@pytest.fixture
def folder(tmp_path):
  table = MemmapCache(tmp_path / "views", SHAPE)
  table.write(IMAGES, VIEWS, values(IMAGES, VIEWS))
  table.save()
  return tmp_path / "views"


def opened(folder):
  table = MemmapCache(folder, SHAPE)
  table.verify()
  return table


def change(path, place):
  """Changes an entry of a table's array, and the time of the last change."""
  before = path.stat().st_mtime_ns
  array = np.load(path, mmap_mode="r+")
  array[place] += 1
  array.flush()
  os.utime(path, ns=(before + 1, before + 1))


def test_what_was_written_is_there_and_whole(folder):
  table = opened(folder)
  assert table.present.sum() == 4 and table.present[IMAGES, VIEWS].all() and not table.damage
  logits, pooled = table.read(["logits", "embedding"])
  expected = values(IMAGES, VIEWS)
  np.testing.assert_array_equal(logits[IMAGES, VIEWS], expected["logits"])
  np.testing.assert_array_equal(pooled[IMAGES, VIEWS], expected["embedding"])


def test_damaged_entries_are_absent_and_named_and_are_written_again(folder):
  change(folder / "embedding.npy", (0, 1))
  table = opened(folder)
  assert table.present.sum() == 2 and not table.present[0].any()
  assert table.damage == f"{folder}: 2 of 4 cached outputs are damaged; these are computed again"
  table.write(IMAGES[:2], VIEWS[:2], values(IMAGES[:2], VIEWS[:2]))
  table.save()
  again = opened(folder)
  assert again.present.sum() == 4 and not again.damage
  np.testing.assert_array_equal(again.read(["embedding"])[0][0, 1], np.zeros(7))


def test_what_was_written_and_not_marked_is_no_damage(folder):
  change(folder / "logits.npy", (0, 2))
  change(folder / "logits.npy", (3, 0))
  assert opened(folder).present.sum() == 4 and not opened(folder).damage


@pytest.mark.parametrize(
  "damage",
  [
    lambda folder: os.truncate(folder / "logits.npy", 200),
    lambda folder: (folder / "embedding.npy").unlink(),
    lambda folder: (folder / "logits.npy").write_bytes(b"garbage"),
    lambda folder: os.truncate(folder / "present.npz", 100),
    lambda folder: np.savez(folder / "present.npz", present=np.ones((2, 2), bool), checksum=np.zeros(2)),
    lambda folder: np.savez(folder / "present.npz", present=np.ones(SHAPE, bool)),
  ],
)
def test_a_damaged_file_leaves_nothing_and_the_table_is_filled_anew(folder, damage):
  damage(folder)
  table = opened(folder)
  assert not table.present.any() and str(folder) in table.damage and "\n" not in table.damage
  table.write(IMAGES, VIEWS, values(IMAGES, VIEWS))
  table.save()
  again = opened(folder)
  assert again.present.sum() == 4 and not again.damage
  np.testing.assert_array_equal(again.read(["logits"])[0][IMAGES, VIEWS], values(IMAGES, VIEWS)["logits"])


def test_a_table_is_verified_once_a_process(folder, monkeypatch):
  opened(folder)
  monkeypatch.setattr(MemmapCache, "_compute_checksums", lambda *args: pytest.fail("verified again"))
  assert opened(folder).present.sum() == 4
