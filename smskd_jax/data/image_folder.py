"""A user's own images: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or .jpg, or .jpeg; or val in test's place.

In memory they are of one size. As photographs they need not be: they stay in their files.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import hashlib
import os
import pathlib
from typing import NamedTuple

import numpy as np

from smskd_jax.data.dataset import IMAGENET_STATS, RawSplits, Split
from smskd_jax.data.image_io import open_image
from smskd_jax.data.lazy_images import CropConfig, LazyImages
from smskd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


class ImageFiles(NamedTuple):
  """Image files, as records; their names as bytes in one array, because there may be millions."""

  root: str
  relative_paths: np.ndarray  # [n], bytes: PART/CLASS/FILE

  def read(self, i: int) -> bytes:
    """The i-th file."""
    return pathlib.Path(self.name(i)).read_bytes()

  def name(self, i: int) -> str:
    """The i-th file's name."""
    return os.path.join(self.root, os.fsdecode(self.relative_paths[i]))


class _FileList(NamedTuple):
  """One part of a folder."""

  relative_paths: list[str]  # PART/CLASS/FILE, class by class, each class in the order of the file names
  sizes: list[int]  # bytes
  label: list[int]


def read_image_folder(argument: str, folder: str) -> RawSplits:
  """All images of both parts; grey where all are grey, RGB otherwise, without transparency.

  The sorted names of the folders in train are the classes, in this order.
  """
  del folder
  where = f"data.source: 'folder:{argument}'"
  root = pathlib.Path(argument)
  class_names, (train, test) = _list_splits(root, where)
  image = read_images([root / name for name in (*train.relative_paths, *test.relative_paths)], where)
  label = np.array([*train.label, *test.label])
  at = len(train.relative_paths)
  return RawSplits(Split(image[:at], label[:at]), Split(image[at:], label[at:]), class_names)


def stream_image_folder(argument: str, folder: str, crop: CropConfig) -> RawSplits:
  """The same images, of any sizes and in colours, to be read when they are asked for.

  Their fingerprint is of the names and sizes of the files.
  """
  del folder
  class_names, parts = _list_splits(pathlib.Path(argument), f"data.source: 'folder:{argument}'")
  names = [name for part in parts for name in part.relative_paths]
  sizes = [size for part in parts for size in part.sizes]
  digest = hashlib.sha256(repr(list(zip(names, sizes, strict=True))).encode()).hexdigest()
  files, at = (
    ImageFiles(argument, np.array([os.fsencode(name) for name in names])),
    len(parts[0].relative_paths),
  )
  train, test = (
    Split(LazyImages(files, rows, crop, digest), np.array(part.label))
    for part, rows in zip(parts, np.split(np.arange(len(names)), [at]), strict=True)
  )
  return RawSplits(train, test, class_names, IMAGENET_STATS)


def _list_splits(root: pathlib.Path, where: str) -> tuple[tuple[str, ...], list[_FileList]]:
  """The classes, and what is in train and in test."""
  class_names = _list_class_folders(root / "train", where)
  if len(class_names) < 2:
    raise UserError(
      f"{where}: {root / 'train'} holds {len(class_names)} class folders; make one folder a class, at least 2"
    )
  val = not (root / "test").is_dir() and (root / "val").is_dir()  # ImageNet's, as it is usually laid out
  parts = [_list_split(root, part, class_names, where) for part in ("train", "val" if val else "test")]
  for k in sorted(set(range(len(class_names))) - set(parts[0].label)):
    raise UserError(
      f"{where}: {root / 'train' / class_names[k]} holds no images; put some there, or remove it"
    )
  return class_names, parts


def _list_class_folders(path: pathlib.Path, where: str) -> tuple[str, ...]:
  if not path.is_dir():
    raise UserError(f"{where}: no folder {path.absolute()}; lay the images out as train/CLASS and test/CLASS")
  return tuple(
    sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
  )


def _list_split(root: pathlib.Path, split: str, class_names: tuple[str, ...], where: str) -> _FileList:
  listed = _FileList([], [], [])
  for name in _list_class_folders(root / split, where):
    if name not in class_names:
      raise UserError(f"{where}: {root / split / name} has no counterpart in train; add one, or remove it")
    for file, size in sorted(_scan_image_files(root / split / name)):
      listed.relative_paths.append(f"{split}/{name}/{file}")
      listed.sizes.append(size)
      listed.label.append(class_names.index(name))
  if not listed.relative_paths:
    raise UserError(f"{where}: no {', '.join(SUFFIXES)} file in {root / split}/CLASS; put images there")
  return listed


def _scan_image_files(folder: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Names and sizes of the image files in a folder."""
  with os.scandir(folder) as entries:  # several times faster than pathlib, and there may be millions
    for entry in entries:
      if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
        yield entry.name, entry.stat().st_size


def read_images(paths: list[pathlib.Path], where: str) -> np.ndarray:
  """Images of files in one array, [n, h, w] where all are grey, else [n, h, w, 3], uint8.

  Raises:
    UserError: a file is no image, or of another size than the first; `where` begins the message.
  """
  with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
    images = list(pool.map(lambda file: _read_image(file, where), paths))
  for file, image in zip(paths, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
      sizes = f"{paths[0]} is {h0}x{w0} (height x width) but {file} is {h}x{w}"
      raise UserError(f"{where}: {sizes}; resize the images to one size, or set data.streamed")
  if all(image.ndim == 2 for image in images):
    return np.stack(images)
  return np.stack([image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images])


def _read_image(path: pathlib.Path, where: str) -> np.ndarray:
  """One image, [h, w] where it is grey, else [h, w, 3], uint8."""
  try:
    return np.asarray(open_image(path, str(path)))
  except ValueError as error:
    raise UserError(f"{where}: {error}") from None
