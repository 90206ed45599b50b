"""The records of a data set, and the check that every source's arrays pass."""

import hashlib
import json
import math
from typing import NamedTuple

import numpy as np

from smskd_jax.data.lazy_images import LazyImages
from smskd_jax.errors import UserError

ImageArray = np.ndarray | LazyImages  # [n, h, w, c], uint8: in memory, or read when they are asked for


class Split(NamedTuple):
  """Images and their labels."""

  image: ImageArray
  label: np.ndarray  # [n], int32

  def take(self, indices: np.ndarray) -> "Split":
    """Some of them, by their places or a mask."""
    return Split(take(self.image, indices), self.label[indices])


def take(image: ImageArray, indices: np.ndarray) -> ImageArray:
  """Some images, by their places or a mask; photographs stay where they are."""
  return image.take(indices) if isinstance(image, LazyImages) else image[indices]


class ChannelStats(NamedTuple):
  """Mean and standard deviation over all pixels of the training images, per channel, where white is 1."""

  mean: tuple[float, ...]
  std: tuple[float, ...]


# ImageNet's, as torchvision has them: photographs are normalized by them, as published networks for photographs expect.
IMAGENET_STATS = ChannelStats((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class RawSplits(NamedTuple):
  """What a reader finds in its files, as yet unchecked: `load` makes a Dataset of it."""

  train: Split  # images may lack the channel, labels may be any integers
  test: Split
  class_names: tuple[str, ...] = ()  # none: the labels' numbers serve as names
  channel_stats: ChannelStats | None = None  # none: measured on all training images


class Dataset(NamedTuple):
  """A data set, ready for training. Validation is held out of train; None where nothing is held out."""

  name: str
  train: Split
  validation: Split | None
  test: Split
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  fingerprint: str  # of the source's arrays, before validation was held out
  unlabeled: ImageArray | None = None  # [m, h, w, c]: images of another source, without their labels

  @property
  def channel_stats(self) -> ChannelStats:
    """Mean and standard deviation by which images are normalised."""
    return ChannelStats(self.mean, self.std)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """[h, w, c] of every image."""
    height, width, channels = self.train.image.shape[1:]
    return height, width, channels


def validate_and_build(name: str, raw: RawSplits) -> Dataset:
  """Checks the arrays and measures what belongs to them; a mistake in them names `data.source`."""
  where = f"data.source: {name!r}"
  train, test = (
    _check_split(where, split, part) for split, part in (("train", raw.train), ("test", raw.test))
  )
  names = raw.class_names or _default_class_names(where, train.label)
  _check_agreement(where, train, test, names)
  mean, std = raw.channel_stats or _measure_channel_stats(where, train.image[:])
  return Dataset(name, train, None, test, names, mean, std, fingerprint(train, test, names))


def fingerprint(train: Split, test: Split, class_names: tuple[str, ...]) -> str:
  """SHA-256, in hex, of every label, shape and class name and every pixel; of photographs see `content`."""
  shapes = [train.image.shape, test.image.shape]
  found = hashlib.sha256(json.dumps([shapes, class_names]).encode())
  for split in (train, test):
    found.update(content_bytes(split.image))
    found.update(split.label.astype("<i4").tobytes())  # the same bytes on every machine
  return found.hexdigest()


def content_bytes(image: ImageArray) -> bytes:
  """Every pixel; of photographs, which are too many for that, what stands for their files and how they are cut."""
  return image.fingerprint.encode() if isinstance(image, LazyImages) else image.tobytes()


def _check_split(where: str, name: str, split: Split) -> Split:
  """The split in the types that `Split` promises, or the first mistake in it."""
  image, label = split
  if image.dtype != np.uint8:
    raise UserError(f"{where}: {name} images are {image.dtype}; store them as uint8, 0 to 255")
  if image.ndim not in (3, 4):
    raise UserError(f"{where}: {name} images have shape {image.shape}; it must be [n, h, w] or [n, h, w, c]")
  if label.ndim != 1:
    raise UserError(f"{where}: {name} labels have shape {label.shape}; it must be [n]")
  if len(image) != len(label):
    raise UserError(
      f"{where}: {len(image)} {name} images but {len(label)} {name} labels; give one label an image"
    )
  if not len(image):
    raise UserError(f"{where}: no {name} images; give at least one a class")
  if not np.issubdtype(label.dtype, np.integer):
    raise UserError(f"{where}: {name} labels are {label.dtype}; store them as integers from 0")
  for value in (label.min(), label.max()):
    if not 0 <= value < 2**31:
      raise UserError(f"{where}: {name} labels hold {value}; number the classes 0, 1, 2, ...")
  image = image if image.ndim == 4 else image[..., None]
  _check_size(where, name, image.shape)
  return Split(image, label.astype(np.int32))


def _check_size(where: str, name: str, shape: tuple[int, ...]) -> None:
  _, height, width, channels = shape
  if channels not in (1, 3):
    raise UserError(f"{where}: {name} images have {channels} channels; they must be grey (1) or RGB (3)")
  if min(height, width) < 8:
    size = f"{height}x{width} (height x width)"
    raise UserError(f"{where}: {name} images are {size}; the networks need at least 8x8, enlarge them")


def _default_class_names(where: str, label: np.ndarray) -> tuple[str, ...]:
  """The numbers of the classes, as their names."""
  classes = int(label.max()) + 1
  if classes > len(label):  # identifiers of some kind, most likely: a classifier of that size would not fit
    number = f"{label.max()} though there are {len(label)} images"
    raise UserError(f"{where}: train labels hold {number}; number the classes 0, 1, 2, ...")
  return tuple(str(k) for k in range(classes))


def _check_agreement(where: str, train: Split, test: Split, class_names: tuple[str, ...]) -> None:
  """Both splits and the class names must speak of the same images and classes."""
  if train.image.shape[1:] != test.image.shape[1:]:
    sizes = f"{train.image.shape[1:]} in train but {test.image.shape[1:]} in test"
    raise UserError(f"{where}: images are {sizes}; make them one size")
  if len(set(class_names)) < len(class_names):
    twice = next(name for name in class_names if class_names.count(name) > 1)
    raise UserError(f"{where}: class name {twice!r} occurs twice; give every class its own")
  seen = np.unique(train.label)
  if len(seen) < 2:
    raise UserError(f"{where}: all train labels are {seen[0]}; a classifier needs at least 2 classes")
  if seen[-1] >= len(class_names):
    raise UserError(
      f"{where}: train labels hold {seen[-1]} but there are {len(class_names)} class names; add names"
    )
  unseen = np.setdiff1d(test.label, seen)
  if len(unseen):
    raise UserError(
      f"{where}: test label {unseen[0]} never occurs in train; remove those images or train on some"
    )


def _measure_channel_stats(where: str, image: np.ndarray) -> ChannelStats:
  """Mean and standard deviation of each channel of [n, h, w, c] images.

  The sums are taken in whole numbers, so every machine finds the same floats, to the last bit.
  """
  mean, std = [], []
  for channel in np.moveaxis(image, -1, 0):
    counts = _histogram(channel)
    n = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    mean.append(total / (255 * n))
    std.append(math.sqrt(n * squares - total * total) / (255 * n))
  if 0 in std:
    raise UserError(f"{where}: channel {std.index(0)} is the same in every pixel of train; check the images")
  return ChannelStats(tuple(mean), tuple(std))


def _histogram(channel: np.ndarray) -> list[int]:
  """How often each of the 256 values occurs in [n, h, w] bytes."""
  counts = np.zeros(256, np.int64)
  for first in range(0, len(channel), 4096):  # in parts, since bincount widens its input to int64
    counts += np.bincount(channel[first : first + 4096].ravel(), minlength=256)
  return counts.tolist()
