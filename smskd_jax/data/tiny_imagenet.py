"""Tiny-ImageNet as its archive unpacks: 200 classes of 64x64 images, 100,000 to train on and 10,000 to test on.

Le, Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015,
http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf

FOLDER/tiny-imagenet-200/train/CLASS/images/*.JPEG
FOLDER/tiny-imagenet-200/val/images/*.JPEG and val/val_annotations.txt: file, class, box

The test set has no labels: as in all of the literature, the validation images are tested on.
"""

import pathlib

import numpy as np

from smskd_jax.data import image_folder
from smskd_jax.data.dataset import RawSplits, Split
from smskd_jax.errors import UserError

FOLDER_NAME = "tiny-imagenet-200"
ERROR_PREFIX = "data.source: 'tiny_imagenet'"


def read_tiny_imagenet(argument: str, folder: str) -> RawSplits:
  """All images of both parts, in RGB; the sorted names of the folders in train are the classes."""
  del argument
  root = pathlib.Path(folder or "data") / FOLDER_NAME
  if not (root / "train").is_dir():
    raise UserError(
      f"{ERROR_PREFIX}: no folder {root / 'train'}; unpack tiny-imagenet-200.zip in data.folder, {root.parent}"
    )
  class_names = tuple(sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir()))
  number = {name: k for k, name in enumerate(class_names)}
  train = [
    (path, number[name]) for name in class_names for path in sorted((root / "train" / name).rglob("*.JPEG"))
  ]
  test = [(root / "val" / "images" / file, number[name]) for file, name in _read_annotations(root, number)]
  for part, found in (("train", train), ("val", test)):
    if not found:
      raise UserError(f"{ERROR_PREFIX}: no image in {root / part}; unpack the archive again")
  paths, label = zip(*train, *test, strict=True)
  image, at = image_folder.read_images(list(paths), ERROR_PREFIX), len(train)
  return RawSplits(
    Split(image[:at], np.array(label[:at])), Split(image[at:], np.array(label[at:])), class_names
  )


def _read_annotations(root: pathlib.Path, known: dict[str, int]) -> list[tuple[str, str]]:
  """File and class of every validation image, in the order of the file names."""
  path = root / "val" / "val_annotations.txt"
  if not path.is_file():
    raise UserError(
      f"{ERROR_PREFIX}: no file {path}, which has the classes of the test images; unpack the archive again"
    )
  found = []
  for i, line in enumerate(path.read_text().splitlines(), start=1):
    parts = line.split("\t")
    if len(parts) < 2 or parts[1] not in known:
      raise UserError(
        f"{ERROR_PREFIX}: line {i} of {path} is not FILE, tab, CLASS, with a class of train: {line[:40]!r}"
      )
    found.append((parts[0], parts[1]))
  return sorted(found)
