"""Tests of data/image_folder.py."""

import numpy as np
from PIL import Image
import pytest

from smskd_jax import data


def save(path, array, mode=None, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(path, **options)


@pytest.fixture
def rgb(tmp_path):
  """Five RGB images of two classes; the first pixel of a file holds its position in the sorted order."""
  rng = np.random.default_rng(0)
  images = {}
  for position, name in enumerate(["train/ant/1", "train/ant/2", "train/bee/1", "test/ant/3", "test/bee/3"]):
    image = rng.integers(0, 256, (8, 10, 3), np.uint8)
    image[0, 0] = position
    images[name] = image
    save(tmp_path / f"{name}.png", image)
  return images


def test_png_files_are_read_exactly(tmp_path, rgb):
  loaded = data.load(f"folder:{tmp_path}")
  np.testing.assert_array_equal(loaded.train.image, list(rgb.values())[:3])
  np.testing.assert_array_equal(loaded.test.image, list(rgb.values())[3:])
  assert loaded.train.label.tolist() == [0, 0, 1] and loaded.test.label.tolist() == [0, 1]
  assert loaded.class_names == ("ant", "bee")


def test_other_files_are_ignored(tmp_path, rgb):
  (tmp_path / "train/ant/notes.txt").write_text("hello")
  (tmp_path / "train/ant/._1.png").write_bytes(b"a Macintosh leaves these")
  (tmp_path / "train/.cache").mkdir()
  assert len(data.load(f"folder:{tmp_path}").train.image) == len([name for name in rgb if "train" in name])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_files_are_read_by_any_suffix(tmp_path, rgb, suffix):
  colour = np.full((8, 10, 3), [200, 100, 50], np.uint8)
  save(tmp_path / f"train/bee/2{suffix}", colour, format="JPEG")
  image = data.load(f"folder:{tmp_path}").train.image[-1]
  assert np.abs(image.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_one_channel(tmp_path, mode):
  checker = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
  for name in ("train/a/1", "train/b/1", "test/a/1"):
    save(tmp_path / f"{name}.png", checker, mode)
  loaded = data.load(f"folder:{tmp_path}")
  assert loaded.train.image.shape == (2, 8, 8, 1)
  np.testing.assert_array_equal(loaded.train.image[0, ..., 0], checker)


def test_grey_images_among_colours_become_rgb(tmp_path, rgb):
  grey = np.arange(80, dtype=np.uint8).reshape(8, 10)
  save(tmp_path / "train/bee/2.png", grey)
  image = data.load(f"folder:{tmp_path}").train.image
  assert image.shape == (4, 8, 10, 3)
  np.testing.assert_array_equal(image[-1], grey[..., None].repeat(3, -1))


@pytest.mark.parametrize(
  "mode, suffix", [("RGBA", ".png"), ("P", ".png"), ("CMYK", ".jpg"), ("YCbCr", ".jpg")]
)
def test_other_modes_become_rgb(tmp_path, rgb, mode, suffix):
  colour = np.full((8, 10, 3), [204, 102, 51], np.uint8)  # of the web palette
  save(tmp_path / f"train/bee/2{suffix}", colour, mode)
  image = data.load(f"folder:{tmp_path}").train.image[-1]
  assert np.abs(image.astype(int) - colour).max() <= 3


def test_a_transparent_palette_gives_no_warning(tmp_path, rgb):
  colour = np.full((8, 10, 3), [204, 102, 51], np.uint8)
  save(tmp_path / "train/bee/2.png", colour, "P", transparency=bytes(range(256)))
  np.testing.assert_array_equal(data.load(f"folder:{tmp_path}").train.image[-1], colour)


def test_refuses_an_absent_folder(tmp_path, refuses):
  refuses("folder:nowhere", "data.source: 'folder:nowhere'", f"no folder {tmp_path / 'nowhere/train'}")


def test_refuses_an_absent_test_folder(tmp_path, refuses, rgb):
  (tmp_path / "test").rename(tmp_path / "held_out")
  refuses("folder:.", f"no folder {tmp_path / 'test'}", "test/CLASS")


def test_val_replaces_a_missing_test_folder(tmp_path, rgb):
  expected = data.load(f"folder:{tmp_path}")
  (tmp_path / "test").rename(tmp_path / "val")
  found = data.load(f"folder:{tmp_path}")
  assert found.fingerprint == expected.fingerprint and len(found.test.label) == 2


def test_streamed_images_equal_those_in_memory(tmp_path, rgb):
  save(tmp_path / "train/bee/2.png", np.zeros((30, 20, 3), np.uint8))  # of another size
  loaded = data.load(f"folder:{tmp_path}", streamed=True, image_size=8, center_crop_fraction=1.0)
  assert loaded.image_shape == (8, 8, 3) and loaded.class_names == ("ant", "bee")
  assert loaded.train.label.tolist() == [0, 0, 1, 1] and loaded.test.label.tolist() == [0, 1]
  for split, first in ((loaded.train, 0), (loaded.test, 3)):
    expected = [image[:, 1:9] for image in list(rgb.values())[first:][: 3 if first == 0 else 2]]
    np.testing.assert_array_equal(split.image[: len(expected)], expected)
  assert loaded.mean == (0.485, 0.456, 0.406) and loaded.std == (0.229, 0.224, 0.225)


def test_fingerprint_of_streamed_images_covers_names_and_sizes(tmp_path, rgb):

  def fingerprint():
    return data.load(f"folder:{tmp_path}", streamed=True, image_size=8).fingerprint

  first = fingerprint()
  assert fingerprint() == first
  file = tmp_path / "train/bee/1.png"
  content = file.read_bytes()
  file.write_bytes(content + b" ")
  assert fingerprint() != first
  file.write_bytes(content)
  assert fingerprint() == first
  file.rename(tmp_path / "train/bee/2.png")
  assert fingerprint() != first


def test_validation_split_of_streamed_images_equals_that_in_memory(tmp_path, rgb):
  for i in range(2, 9):
    save(tmp_path / f"train/bee/{i}.png", np.full((8, 10, 3), 10 * i, np.uint8))
    save(tmp_path / f"train/ant/{i + 1}.png", np.full((8, 10, 3), 10 * i, np.uint8))
  loaded = data.load(
    f"folder:{tmp_path}", streamed=True, image_size=8, center_crop_fraction=1.0, validation=0.25
  )
  in_memory = data.load(f"folder:{tmp_path}", validation=0.25)
  for name in ("train", "validation"):
    streamed, expected = getattr(loaded, name), getattr(in_memory, name)
    np.testing.assert_array_equal(streamed.label, expected.label)
    np.testing.assert_array_equal(streamed.image[:], expected.image[:, :, 1:9])


@pytest.mark.parametrize("names", [[], ["ant"]])
def test_refuses_fewer_than_two_classes(names, tmp_path, refuses):
  for name in names:
    save(tmp_path / "train" / name / "1.png", np.zeros((8, 8), np.uint8))
  (tmp_path / "train").mkdir(exist_ok=True)
  refuses(f"folder:{tmp_path}", f"holds {len(names)} class folders", "at least 2")


def test_refuses_folders_without_images(tmp_path, refuses):
  for name in ("train/ant", "train/bee", "test/ant"):
    (tmp_path / name).mkdir(parents=True)
  refuses(f"folder:{tmp_path}", "no .png, .jpg, .jpeg file in", "train/CLASS")


def test_refuses_a_class_without_training_images(tmp_path, refuses, rgb):
  (tmp_path / "train/cow").mkdir()
  refuses(f"folder:{tmp_path}", "train/cow holds no images")


def test_refuses_a_class_that_only_test_has(tmp_path, refuses, rgb):
  (tmp_path / "test/wasp").mkdir()
  refuses(f"folder:{tmp_path}", "test/wasp has no counterpart in train")


def test_refuses_images_of_different_sizes(tmp_path, refuses, rgb):
  save(tmp_path / "train/bee/2.png", np.zeros((8, 12, 3), np.uint8))
  save(tmp_path / "train/bee/3.png", np.zeros((9, 12, 3), np.uint8))
  refuses(
    f"folder:{tmp_path}",
    "train/ant/1.png is 8x10 (height x width) but",
    "train/bee/2.png is 8x12",
    "one size",
  )


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_refuses_an_unreadable_file(content, tmp_path, refuses, rgb):
  path = tmp_path / "train/bee/1.png"
  path.write_bytes(path.read_bytes()[:100] if content is None else content)
  refuses(f"folder:{tmp_path}", "cannot read", "train/bee/1.png", "replace or remove it")


def test_refuses_sixteen_bits(tmp_path, refuses, rgb):
  save(tmp_path / "train/bee/2.png", np.zeros((8, 10), np.uint16))
  refuses(f"folder:{tmp_path}", "train/bee/2.png has pixels of kind I;16", "8-bit")


def test_refuses_small_images(tmp_path, refuses):
  for name in ("train/a/1", "train/b/1", "test/a/1"):
    save(tmp_path / f"{name}.png", np.arange(49, dtype=np.uint8).reshape(7, 7))
  refuses(f"folder:{tmp_path}", "train images are 7x7", "8x8")
