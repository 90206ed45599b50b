"""A user's own images: FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or .jpg, or .jpeg."""

from concurrent.futures import ThreadPoolExecutor
import pathlib

import numpy as np

from smskd_jax.data.dataset import Arrays, Split
from smskd_jax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg")


def image_folder(argument: str, folder: str) -> Arrays:
  """All images of both parts; grey where all are grey, RGB otherwise, without transparency.

  The sorted names of the folders in train are the classes, in this order.
  """
  del folder
  root = pathlib.Path(argument)
  where = f"data.source: 'folder:{argument}'"
  names = _folders(root / "train", where)
  if len(names) < 2:
    raise UserError(
      f"{where}: {root / 'train'} holds {len(names)} class folders; make one folder a class, at least 2"
    )
  train, test = (_list(root / part, names, where) for part in ("train", "test"))
  for name in names:
    if not any(path.parent.name == name for path in train):
      raise UserError(f"{where}: {root / 'train' / name} holds no images; put some there, or remove it")
  image = _stack([*train, *test], where)
  label = np.array([names.index(path.parent.name) for path in (*train, *test)])
  at = len(train)
  return Arrays(Split(image[:at], label[:at]), Split(image[at:], label[at:]), names)


def _folders(path: pathlib.Path, where: str) -> tuple[str, ...]:
  if not path.is_dir():
    raise UserError(f"{where}: no folder {path.absolute()}; lay the images out as train/CLASS and test/CLASS")
  return tuple(
    sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
  )


def _list(path: pathlib.Path, class_names: tuple[str, ...], where: str) -> list[pathlib.Path]:
  """The image files of one part, class by class, each class in the order of the file names."""
  files = []
  for name in _folders(path, where):
    if name not in class_names:
      raise UserError(f"{where}: {path / name} has no counterpart in train; add one, or remove it")
    files += sorted(
      file
      for file in (path / name).iterdir()
      if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
  if not files:
    raise UserError(f"{where}: no {', '.join(SUFFIXES)} file in {path}/CLASS; put images there")
  return files


def _stack(files: list[pathlib.Path], where: str) -> np.ndarray:
  """The images in one array, [n, h, w] where all are grey, else [n, h, w, 3]."""
  with ThreadPoolExecutor() as pool:  # Pillow lets go of the interpreter while it decodes
    images = list(pool.map(lambda file: _decode(file, where), files))
  for file, image in zip(files, images, strict=True):
    if image.shape[:2] != images[0].shape[:2]:
      (h, w), (h0, w0) = image.shape[:2], images[0].shape[:2]
      sizes = f"{files[0]} is {h0}x{w0} (height x width) but {file} is {h}x{w}"
      raise UserError(f"{where}: {sizes}; resize the images to one size")
  if all(image.ndim == 2 for image in images):
    return np.stack(images)
  return np.stack([image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images])


def _decode(file: pathlib.Path, where: str) -> np.ndarray:
  """One image, [h, w] where it is grey, else [h, w, 3], uint8."""
  from PIL import Image

  try:
    with Image.open(file) as image:
      if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
      if image.mode in ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr"):
        # Through RGBA, since a palette with transparency would make Pillow warn.
        return np.asarray(image.convert("RGBA").convert("RGB"))
      mode = image.mode
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of bad files
    raise UserError(f"{where}: cannot read {file} ({error}); replace or remove it") from None
  raise UserError(f"{where}: {file} has pixels of kind {mode}; convert it to 8-bit grey or RGB")
