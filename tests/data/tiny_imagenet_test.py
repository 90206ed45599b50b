"""Tests of data/tiny_imagenet.py, on a few images in the layout of the archive."""

import re

import numpy as np
from PIL import Image
import pytest

from smskd_jax import data
from smskd_jax.errors import UserError


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, quality=95)


@pytest.fixture
def folder(tmp_path):
  """Two classes; one image of train is grey, as some of the archive's are."""
  rng, root = np.random.default_rng(0), tmp_path / "tiny-imagenet-200"
  for name in ("n02", "n01"):
    for i in range(2):
      grey = name == "n02" and i == 1
      image = np.full((64, 64) if grey else (64, 64, 3), rng.integers(256), np.uint8)
      save(root / "train" / name / "images" / f"{name}_{i}.JPEG", image)
  for i, value in enumerate((10, 200, 90)):
    save(root / "val" / "images" / f"val_{i}.JPEG", np.full((64, 64, 3), value, np.uint8))
  (root / "val" / "val_annotations.txt").write_text(
    "val_2.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n"
  )
  return tmp_path


def test_layout_of_the_archive(folder):
  loaded = data.load("tiny_imagenet", folder=str(folder))
  assert loaded.class_names == ("n01", "n02") and loaded.image_shape == (64, 64, 3)
  assert loaded.train.label.tolist() == [0, 0, 1, 1] and loaded.test.label.tolist() == [1, 0, 0]
  np.testing.assert_allclose(loaded.test.image[:].mean(axis=(1, 2, 3)), [10, 200, 90], atol=1)


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda root: (root / "val/val_annotations.txt").unlink(), "no file .*val_annotations.txt"),
    (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG n01\n"), "line 1 of .* is not FILE, tab"),
    (lambda root: (root / "val/val_annotations.txt").write_text(""), "no image in .*val"),
    (lambda root: (root / "val/images/val_1.JPEG").write_bytes(b"no image"), "val_1.JPEG"),
    (lambda root: root.rename(root.parent / "elsewhere"), "unpack tiny-imagenet-200.zip in data.folder"),
  ],
)  # fmt: skip
def test_damages_are_named(folder, damage, message):
  damage(folder / "tiny-imagenet-200")
  with pytest.raises(UserError, match=message) as refused:
    data.load("tiny_imagenet", folder=str(folder))
  assert re.match("data.source: 'tiny_imagenet'", str(refused.value))
