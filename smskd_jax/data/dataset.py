"""Data sets in memory: types, validation, the validation split, resizing."""

import hashlib
import json
import math
import numbers
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smskd_jax.data.lazy_images import LazyImages
from smskd_jax.errors import UserError

ImageArray = np.ndarray | LazyImages  # [n, h, w, c], uint8: in memory, or decoded on access

MAX_IMAGE_SIZE = 4096  # pixels, the side of a square
_LUMA_WEIGHTS = np.array([299, 587, 114])  # of red, green and blue, ITU-R 601, in thousandths


class Split(NamedTuple):
  """Images and their labels."""

  image: ImageArray
  label: np.ndarray  # [n], int32

  def take(self, indices: np.ndarray) -> "Split":
    """Examples selected by indices or a mask."""
    return Split(take(self.image, indices), self.label[indices])


def take(image: ImageArray, indices: np.ndarray) -> ImageArray:
  """Images selected by indices or a mask; lazy images are not decoded."""
  return image.take(indices) if isinstance(image, LazyImages) else image[indices]


class ChannelStats(NamedTuple):
  """Mean and standard deviation of the training images, per channel, where white is 1."""

  mean: tuple[float, ...]
  std: tuple[float, ...]


# ImageNet's, as in torchvision; streamed photographs are normalized by these, as published networks for photographs
# expect.
IMAGENET_STATS = ChannelStats((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class RawSplits(NamedTuple):
  """Unchecked arrays of a source; `load` makes a Dataset of them."""

  train: Split  # images may lack the channel axis, labels may be any integers
  test: Split
  class_names: tuple[str, ...] = ()  # empty: the numbers of the classes serve as names
  channel_stats: ChannelStats | None = None  # None: measured on all training images


class Dataset(NamedTuple):
  """A validated data set. `validation` is split off from train.

  None without a validation split.
  """

  name: str
  train: Split
  validation: Split | None
  test: Split
  class_names: tuple[str, ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  fingerprint: str  # of the source's arrays, before validation was split off
  unlabeled: ImageArray | None = None  # [m, h, w, c]: images of another source, without their labels

  @property
  def channel_stats(self) -> ChannelStats:
    """Mean and standard deviation that normalize the images."""
    return ChannelStats(self.mean, self.std)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """[h, w, c] of every image."""
    height, width, channels = self.train.image.shape[1:]
    return height, width, channels


# --- Validation of a source's arrays ---


def validate_and_build(name: str, raw: RawSplits) -> Dataset:
  """Validates the arrays of a source and measures channel statistics and fingerprint.

  Raises:
    UserError: the arrays are no data set; the message names `data.source`.
  """
  where = f"data.source: {name!r}"
  train, test = (
    _check_split(where, split, part) for split, part in (("train", raw.train), ("test", raw.test))
  )
  names = raw.class_names or _default_class_names(where, train.label)
  _check_agreement(where, train, test, names)
  mean, std = raw.channel_stats or _measure_channel_stats(where, train.image[:])
  return Dataset(name, train, None, test, names, mean, std, fingerprint(train, test, names))


def fingerprint(train: Split, test: Split, class_names: tuple[str, ...]) -> str:
  """SHA-256, in hex, of all labels, shapes, class names and pixels.

  For lazy images see `content_bytes`.
  """
  shapes = [train.image.shape, test.image.shape]
  digest = hashlib.sha256(json.dumps([shapes, class_names]).encode())
  for split in (train, test):
    digest.update(content_bytes(split.image))
    digest.update(split.label.astype("<i4").tobytes())  # the same bytes on every machine
  return digest.hexdigest()


def content_bytes(image: ImageArray) -> bytes:
  """All pixels; of lazy images a fingerprint of the files and of the crop.

  Lazy images are too many to read.
  """
  return image.fingerprint.encode() if isinstance(image, LazyImages) else image.tobytes()


def _check_split(where: str, name: str, split: Split) -> Split:
  """Converts a split to the types of `Split`; raises UserError for the first mistake."""
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
  """Numbers of the classes as their names."""
  num_classes = int(label.max()) + 1
  if num_classes > len(label):  # most likely identifiers: a classifier of that size would not fit into memory
    value = f"{label.max()} though there are {len(label)} images"
    raise UserError(f"{where}: train labels hold {value}; number the classes 0, 1, 2, ...")
  return tuple(str(k) for k in range(num_classes))


def _check_agreement(where: str, train: Split, test: Split, class_names: tuple[str, ...]) -> None:
  """Checks that both splits and the class names have the same image shape and classes."""
  if train.image.shape[1:] != test.image.shape[1:]:
    sizes = f"{train.image.shape[1:]} in train but {test.image.shape[1:]} in test"
    raise UserError(f"{where}: images are {sizes}; make them one size")
  if len(set(class_names)) < len(class_names):
    twice = next(name for name in class_names if class_names.count(name) > 1)
    raise UserError(f"{where}: class name {twice!r} occurs twice; give every class its own")
  classes = np.unique(train.label)
  if len(classes) < 2:
    raise UserError(f"{where}: all train labels are {classes[0]}; a classifier needs at least 2 classes")
  if classes[-1] >= len(class_names):
    raise UserError(
      f"{where}: train labels hold {classes[-1]} but there are {len(class_names)} class names; add names"
    )
  test_only = np.setdiff1d(test.label, classes)
  if len(test_only):
    raise UserError(
      f"{where}: test label {test_only[0]} never occurs in train; remove those images or train on some"
    )


def _measure_channel_stats(where: str, image: np.ndarray) -> ChannelStats:
  """Mean and standard deviation of each channel of [n, h, w, c] images.

  Sums are whole numbers, so that every machine computes the same floats, to the last bit.
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
  """Counts the 256 values in [n, h, w] bytes."""
  counts = np.zeros(256, np.int64)
  for first in range(0, len(channel), 4096):  # in blocks, since bincount widens its input to int64
    counts += np.bincount(channel[first : first + 4096].ravel(), minlength=256)
  return counts.tolist()


# --- Train and validation ---


def stratified_mask(label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Selects round(fraction * count) random examples of every class.

  Args:
    label: [n], integers.
    fraction: of each class, in [0, 1].
    seed: 0 <= seed < 2**32.

  Returns:
    [n], bool: True for selected examples.
  """
  # Not default_rng: NumPy guarantees for RandomState alone that later versions draw the same split.
  rng = np.random.RandomState(seed)
  selected = np.zeros(len(label), bool)
  for k in np.unique(label):
    members = rng.permutation(np.flatnonzero(label == k))
    selected[members[: round(fraction * len(members))]] = True
  return selected


def check_split_options(fraction: float, seed: int) -> None:
  """Raises UserError for an invalid fraction or seed.

  Needs no data, so that a run can fail at once.
  """
  if not isinstance(fraction, numbers.Real) or not 0 <= fraction < 1:
    raise UserError(f"data.validation: {fraction!r} is not a fraction of train; give 0 <= fraction < 1")
  if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**32:
    raise UserError(f"data.split_seed: {seed!r} is not a seed; give a whole number, 0 <= seed < 2**32")


def split_validation(dataset: Dataset, fraction: float, seed: int) -> Dataset:
  """Moves a fraction of each class from train to validation.

  Both keep the order of the source.

  Raises:
    UserError: an invalid option, or a class would have no image in train or in validation.
  """
  check_split_options(fraction, seed)
  if not fraction:
    return dataset
  label = dataset.train.label
  selected = stratified_mask(label, fraction, seed)
  for k, count in zip(*np.unique(label, return_counts=True), strict=True):
    if not 0 < np.sum(selected & (label == k)) < count:
      images = f"{fraction} of the {count} train images of class {dataset.class_names[k]!r}"
      raise UserError(
        f"data.validation: {images} leaves train or validation without any; give another fraction, or 0"
      )
  return dataset._replace(train=dataset.train.take(~selected), validation=dataset.train.take(selected))


# --- Resizing ---


def resize_dataset(dataset: Dataset, size: int) -> Dataset:
  """Resizes all images to squares.

  Mean and standard deviation stay those of the original images.

  Raises:
    UserError: the images would not fit into memory.
  """
  count = len(dataset.train.label) + len(dataset.test.label)
  channels = dataset.image_shape[2]
  _check_memory(count * size * size * channels, f"{count:,} images of {size}x{size}")
  train, test = (
    Split(resize_images(split.image[:], (size, size, channels)), split.label)
    for split in (dataset.train, dataset.test)
  )
  return dataset._replace(train=train, test=test, fingerprint=fingerprint(train, test, dataset.class_names))


def resize_images(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  """Resizes by Pillow's bilinear filter with antialiasing.

  Repeats grey channels or takes the luma of colours.

  Args:
    image: [n, h, w, c], uint8, c 1 or 3.
    shape: of each resulting image, [h, w, c].

  Returns:
    [n, *shape], uint8; the argument itself if it has that shape.
  """
  height, width, channels = shape
  if image.shape[1:3] != (height, width):
    image = np.stack([_resize_image(one, height, width) for one in image])
  if image.shape[3] == channels:
    return image
  if channels == 3:
    return np.repeat(image, 3, axis=3)
  return ((image.astype(np.int64) @ _LUMA_WEIGHTS + 500) // 1000).astype(np.uint8)[..., None]


def _resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
  from PIL import Image

  grey = image.shape[2] == 1
  pillow_image = Image.fromarray(image[..., 0] if grey else image)
  resized = np.asarray(pillow_image.resize((width, height), Image.Resampling.BILINEAR))
  return resized[..., None] if grey else resized


def _check_memory(num_bytes: int, description: str) -> None:
  """Refuses arrays larger than the available memory."""
  if not Path("/proc/meminfo").is_file():
    return
  lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
  free = int(lines["MemAvailable"].split()[0]) * 1024
  if num_bytes > free:
    raise UserError(
      f"data.image_size: {description} need {num_bytes / 2**30:.1f} GiB of memory, but {free / 2**30:.1f} GiB are "
      "free; use a smaller image_size, or streamed images"
    )
