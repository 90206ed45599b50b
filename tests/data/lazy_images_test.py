"""Tests of data/lazy_images.py."""

import pickle

import numpy as np
from PIL import Image
import pytest

from photographs import write_folder
from smskd_jax import data
from smskd_jax.data.lazy_images import ASPECT_RATIO_RANGE, CropConfig, center_crop, random_crop_box
from smskd_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_folder(tmp_path_factory.mktemp("imagenet"), 8)


@pytest.fixture(scope="module")
def train(folder):
  return data.load(f"folder:{folder}", streamed=True, image_size=24).train.image


def repeat_ids(epoch, count):
  return [(epoch, 0)] * count


def test_lazy_images_index_like_an_array(train):
  assert train.shape == (16, 24, 24, 3) and len(train) == 16 and train.dtype == np.uint8 and train.ndim == 4
  rows = np.array([[3, 0], [3, 15]])
  shown = train[rows]
  assert shown.shape == (2, 2, 24, 24, 3) and shown.dtype == np.uint8
  np.testing.assert_array_equal(shown[0, 0], shown[1, 0])
  np.testing.assert_array_equal(shown[1, 1], train[15:][0])
  assert train[np.arange(0)].shape == (0, 24, 24, 3)


def test_take_selects_without_changing_the_fingerprint(train):
  some = train.take(np.arange(16) % 2 == 1)
  assert len(some) == 8 and some.fingerprint == train.fingerprint
  np.testing.assert_array_equal(some[1:3], train[np.array([3, 5])])
  np.testing.assert_array_equal(some.take(np.array([2, 0]))[:], train[np.array([5, 1])])


def test_a_pickled_copy_gives_equal_images(train):
  copy = pickle.loads(pickle.dumps(train))
  np.testing.assert_array_equal(copy[:], train[:])
  np.testing.assert_array_equal(
    copy.random_resized_crops(np.arange(4), 1, repeat_ids(0, 4)),
    train.random_resized_crops(np.arange(4), 1, repeat_ids(0, 4)),
  )


def test_a_random_crop_depends_on_seed_repeat_id_and_index_alone(train):
  rows = np.array([4, 9, 2])
  shown = train.random_resized_crops(rows, 7, repeat_ids(1, 3))
  np.testing.assert_array_equal(train.random_resized_crops(rows[::-1], 7, repeat_ids(1, 3))[::-1], shown)
  np.testing.assert_array_equal(train.random_resized_crops(rows[1:2], 7, repeat_ids(1, 1))[0], shown[1])
  for seed, visit in ((8, (1, 0)), (7, (2, 0)), (7, (1, 1))):
    other = train.random_resized_crops(rows, seed, [visit] * 3)
    assert all((a != b).any() for a, b in zip(shown, other, strict=True))


def test_grey_and_cmyk_files_become_rgb(folder, train):
  names = sorted((folder / "train" / "n03877845").iterdir())
  grey, cmyk = (names.index(folder / "train" / "n03877845" / f"n03877845_{i}.JPEG") for i in (0, 1))
  for i, mode in ((grey, "L"), (cmyk, "CMYK")):
    with Image.open(names[i]) as image:
      assert image.mode == mode
  shown = train[np.array([grey, cmyk])].astype(int)
  assert (np.ptp(shown[0], axis=-1) == 0).all()
  assert np.ptp(shown[1], axis=-1).max() > 20


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (300, 300)])
def test_center_crop_equals_torchvisions_resize_and_center_crop(size):
  """The transforms of torchvision, written out: the shorter side to 256, then the centre 224."""
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
  shorter = min(size)
  width, height = (256 if side == shorter else int(256 * side / shorter) for side in size)
  left, top = round((width - 224) / 2), round((height - 224) / 2)
  resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
  np.testing.assert_array_equal(
    center_crop(image, CropConfig(224)), resized[top : top + 224, left : left + 224], strict=True
  )


def test_a_square_of_the_right_size_is_unchanged():
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
  np.testing.assert_array_equal(center_crop(image, CropConfig(20, center_fraction=1.0)), np.asarray(image))
  assert random_crop_box(20, 20, np.full((10, 4), 0.3), 1.0) == (0, 0, 20, 20)


def test_random_crop_boxes_are_inside_and_within_the_bounds():
  width, height = 500, 375
  uniforms = np.random.default_rng(0).random((2000, 10, 4))
  boxes = np.array([random_crop_box(width, height, one, 0.08) for one in uniforms])
  w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
  area, aspect = w * h / (width * height), w / h
  assert 0.08 * 0.97 < area.min() < 0.1 and 0.9 < area.max() <= 1
  assert (
    ASPECT_RATIO_RANGE[0] * 0.98 < aspect.min() < 0.78 and 1.28 < aspect.max() < ASPECT_RATIO_RANGE[1] * 1.02
  )
  square = np.array([random_crop_box(400, 400, one, 0.08) for one in uniforms])
  wide = square[:, 2] - square[:, 0] > square[:, 3] - square[:, 1]
  assert np.mean(wide) == pytest.approx(0.5, abs=0.05)  # as often wide as high
  assert {0, width} <= {boxes[:, 0].min(), boxes[:, 2].max()}


@pytest.mark.parametrize(("size", "expected"), [((100, 10), (43, 0, 56, 10)), ((10, 100), (0, 43, 10, 56))])
def test_random_crop_box_is_central_if_no_attempt_fits(size, expected):
  """Of a shape within the bounds: 13 pixels of 10 times 4/3 are the most that torchvision's rounding allows."""
  assert random_crop_box(*size, np.zeros((10, 4)) + 0.99, 0.9) == expected


def test_refuses_a_damaged_file(tmp_path):
  write_folder(tmp_path, 4)
  file = tmp_path / "train" / "n11939491" / "n11939491_2.JPEG"
  file.write_bytes(file.read_bytes()[:300])
  images = data.load(f"folder:{tmp_path}", streamed=True, image_size=16).train.image
  with pytest.raises(UserError, match=f"data.source: cannot read {file}.*replace or remove"):
    images[:]
  with pytest.raises(UserError, match=str(file)):
    images.random_resized_crops(np.arange(8), 0, repeat_ids(0, 8))
