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

from smskd_jax.data.dataset import OF_PHOTOGRAPHS, Arrays, Split
from smskd_jax.data.photographs import Photographs, Squares
from smskd_jax.data.pictures import open_picture
from smskd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


class Files(NamedTuple):
  """Image files, as records; their names as bytes in one array, because there may be millions."""

  root: str
  names: np.ndarray  # [n], bytes: PART/CLASS/FILE

  def read(self, i: int) -> bytes:
    """The i-th file."""
    return pathlib.Path(self.name(i)).read_bytes()

  def name(self, i: int) -> str:
    """The i-th file's name."""
    return os.path.join(self.root, os.fsdecode(self.names[i]))


class _Listed(NamedTuple):
  """One part of a folder."""

  names: list[str]  # PART/CLASS/FILE, class by class, each class in the order of the file names
  sizes: list[int]  # bytes
  label: list[int]


def image_folder(argument: str, folder: str) -> Arrays:
  """All images of both parts; grey where all are grey, RGB otherwise, without transparency.

  The sorted names of the folders in train are the classes, in this order.
  """
  del folder
  where = f"data.source: 'folder:{argument}'"
  root = pathlib.Path(argument)
  class_names, (train, test) = _list(root, where)
  image = stack([root / name for name in (*train.names, *test.names)], where)
  label = np.array([*train.label, *test.label])
  at = len(train.names)
  return Arrays(Split(image[:at], label[:at]), Split(image[at:], label[at:]), class_names)


def photographs(argument: str, folder: str, squares: Squares) -> Arrays:
  """The same images, of any sizes and in colours, to be read when they are asked for.

  Their fingerprint is of the names and sizes of the files.
  """
  del folder
  class_names, parts = _list(pathlib.Path(argument), f"data.source: 'folder:{argument}'")
  names = [name for part in parts for name in part.names]
  sizes = [size for part in parts for size in part.sizes]
  digest = hashlib.sha256(repr(list(zip(names, sizes, strict=True))).encode()).hexdigest()
  files, at = Files(argument, np.array([os.fsencode(name) for name in names])), len(parts[0].names)
  train, test = (
    Split(Photographs(files, rows, squares, digest), np.array(part.label))
    for part, rows in zip(parts, np.split(np.arange(len(names)), [at]), strict=True)
  )
  return Arrays(train, test, class_names, OF_PHOTOGRAPHS)


def _list(root: pathlib.Path, where: str) -> tuple[tuple[str, ...], list[_Listed]]:
  """The classes, and what is in train and in test."""
  class_names = _folders(root / "train", where)
  if len(class_names) < 2:
    raise UserError(
      f"{where}: {root / 'train'} holds {len(class_names)} class folders; make one folder a class, at least 2"
    )
  val = not (root / "test").is_dir() and (root / "val").is_dir()  # ImageNet's, as it is usually laid out
  parts = [_list_part(root, part, class_names, where) for part in ("train", "val" if val else "test")]
  for k in sorted(set(range(len(class_names))) - set(parts[0].label)):
    raise UserError(
      f"{where}: {root / 'train' / class_names[k]} holds no images; put some there, or remove it"
    )
  return class_names, parts


def _folders(path: pathlib.Path, where: str) -> tuple[str, ...]:
  if not path.is_dir():
    raise UserError(f"{where}: no folder {path.absolute()}; lay the images out as train/CLASS and test/CLASS")
  return tuple(
    sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
  )


def _list_part(root: pathlib.Path, part: str, class_names: tuple[str, ...], where: str) -> _Listed:
  listed = _Listed([], [], [])
  for name in _folders(root / part, where):
    if name not in class_names:
      raise UserError(f"{where}: {root / part / name} has no counterpart in train; add one, or remove it")
    for file, size in sorted(_images(root / part / name)):
      listed.names.append(f"{part}/{name}/{file}")
      listed.sizes.append(size)
      listed.label.append(class_names.index(name))
  if not listed.names:
    raise UserError(f"{where}: no {', '.join(SUFFIXES)} file in {root / part}/CLASS; put images there")
  return listed


def _images(folder: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Names and sizes of the image files in a folder."""
  with os.scandir(folder) as entries:  # several times faster than pathlib, and there may be millions
    for entry in entries:
      if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
        yield entry.name, entry.stat().st_size


def stack(files: list[pathlib.Path], where: str) -> np.ndarray:
  """Images of files in one array, [n, h, w] where all are grey, else [n, h, w, 3], uint8.

  Raises:
    UserError: a file is no image, or of another size than the first; `where` begins the message.
  """
  with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
    images = list(pool.map(lambda file: _decode(file, where), files))
  for file, image in zip(files, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
      sizes = f"{files[0]} is {h0}x{w0} (height x width) but {file} is {h}x{w}"
      raise UserError(f"{where}: {sizes}; resize the images to one size, or set data.streamed")
  if all(image.ndim == 2 for image in images):
    return np.stack(images)
  return np.stack([image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images])


def _decode(file: pathlib.Path, where: str) -> np.ndarray:
  """One image, [h, w] where it is grey, else [h, w, 3], uint8."""
  try:
    return np.asarray(open_picture(file, str(file)))
  except ValueError as error:
    raise UserError(f"{where}: {error}") from None
