"""A user's own images: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or .jpg, or .jpeg.

`val` may replace `test`.

`read_image_folder` reads images of one size into memory; `stream_image_folder` leaves images of any size in files.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from smskd_jax.data.dataset import IMAGENET_STATS, RawSplits, Split
from smskd_jax.data.lazy_images import CropConfig, LazyImages, open_image
from smskd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageFiles(NamedTuple):
  """Image files as a `RecordSource`.

  Their paths are bytes in one array, because there may be millions.
  """

  root: str
  relative_paths: np.ndarray  # [n], bytes: PART/CLASS/FILE

  def read(self, index: int) -> bytes:
    """Bytes of one file."""
    return pathlib.Path(self.name(index)).read_bytes()

  def name(self, index: int) -> str:
    """Path of one file."""
    return os.path.join(self.root, os.fsdecode(self.relative_paths[index]))


class _FileList(NamedTuple):
  """Files of one split, class by class, each class sorted by file name."""

  relative_paths: list[str]  # PART/CLASS/FILE
  sizes: list[int]  # bytes
  label: list[int]


def read_image_folder(argument: str, folder: str) -> RawSplits:
  """All images of both splits in memory; grey if all are grey, else RGB.

  Transparency is dropped.

  The sorted names of the folders in train are the classes.
  """
  del folder
  where = f"data.source: 'folder:{argument}'"
  root = pathlib.Path(argument)
  class_names, (train, test) = _list_splits(root, where)
  image = read_images([root / path for path in (*train.relative_paths, *test.relative_paths)], where)
  label = np.array([*train.label, *test.label])
  n = len(train.label)
  return RawSplits(Split(image[:n], label[:n]), Split(image[n:], label[n:]), class_names)


def stream_image_folder(argument: str, folder: str, crop: CropConfig) -> RawSplits:
  """The images of `read_image_folder`, of any sizes and in RGB, decoded on access.

  The fingerprint covers names and sizes of the files, not their contents.
  """
  del folder
  class_names, splits = _list_splits(pathlib.Path(argument), f"data.source: 'folder:{argument}'")
  paths = [path for split in splits for path in split.relative_paths]
  sizes = [size for split in splits for size in split.sizes]
  digest = hashlib.sha256(repr(list(zip(paths, sizes, strict=True))).encode()).hexdigest()
  files = ImageFiles(argument, np.array([os.fsencode(path) for path in paths]))
  indices = np.split(np.arange(len(paths)), [len(splits[0].label)])
  train, test = (
    Split(LazyImages(files, rows, crop, digest), np.array(split.label))
    for split, rows in zip(splits, indices, strict=True)
  )
  return RawSplits(train, test, class_names, IMAGENET_STATS)


def _list_splits(root: pathlib.Path, where: str) -> tuple[tuple[str, ...], list[_FileList]]:
  """Class names, and the files of train and test."""
  class_names = _list_class_folders(root / "train", where)
  if len(class_names) < 2:
    raise UserError(
      f"{where}: {root / 'train'} holds {len(class_names)} class folders; make one folder a class, at least 2"
    )
  use_val = not (root / "test").is_dir() and (root / "val").is_dir()  # the usual layout of ImageNet
  splits = [_list_split(root, split, class_names, where) for split in ("train", "val" if use_val else "test")]
  for k in sorted(set(range(len(class_names))) - set(splits[0].label)):
    raise UserError(
      f"{where}: {root / 'train' / class_names[k]} holds no images; put some there, or remove it"
    )
  return class_names, splits


def _list_class_folders(path: pathlib.Path, where: str) -> tuple[str, ...]:
  if not path.is_dir():
    raise UserError(f"{where}: no folder {path.absolute()}; lay the images out as train/CLASS and test/CLASS")
  return tuple(
    sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
  )


def _list_split(root: pathlib.Path, split: str, class_names: tuple[str, ...], where: str) -> _FileList:
  files = _FileList([], [], [])
  for name in _list_class_folders(root / split, where):
    if name not in class_names:
      raise UserError(f"{where}: {root / split / name} has no counterpart in train; add one, or remove it")
    for file, size in sorted(_scan_image_files(root / split / name)):
      files.relative_paths.append(f"{split}/{name}/{file}")
      files.sizes.append(size)
      files.label.append(class_names.index(name))
  if not files.label:
    raise UserError(f"{where}: no {', '.join(SUFFIXES)} file in {root / split}/CLASS; put images there")
  return files


def _scan_image_files(folder: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Names and sizes of the image files in a folder."""
  with os.scandir(folder) as entries:  # several times faster than pathlib, and there may be millions
    for entry in entries:
      if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
        yield entry.name, entry.stat().st_size


def read_images(paths: list[pathlib.Path], where: str) -> np.ndarray:
  """Images of files in one array: [n, h, w] if all are grey, else [n, h, w, 3], uint8.

  Raises:
    UserError: a file is no image, or has another size than the first; `where` begins the message.
  """
  with ThreadPoolExecutor() as pool:  # Pillow releases the interpreter lock while it decodes
    images = list(pool.map(lambda path: _read_image(path, where), paths))
  for path, image in zip(paths, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
      sizes = f"{paths[0]} is {h0}x{w0} (height x width) but {path} is {h}x{w}"
      raise UserError(f"{where}: {sizes}; resize the images to one size, or set data.streamed")
  if all(image.ndim == 2 for image in images):
    return np.stack(images)
  return np.stack([image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images])


def _read_image(path: pathlib.Path, where: str) -> np.ndarray:
  """One image, uint8: [h, w] if grey, else [h, w, 3]."""
  try:
    return np.asarray(open_image(path, str(path)))
  except ValueError as error:
    raise UserError(f"{where}: {error}") from None
