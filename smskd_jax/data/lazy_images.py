"""Photographs of many sizes, read and decoded when they are asked for, and cut to squares of one size.

To train on, a random part of each, as Inception's authors do it: area and aspect ratio are drawn, then the place.
Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6; ten tries, and the tests' cut where none fits,
are torchvision's RandomResizedCrop. To test on, the middle: the shorter side is resized, and the centre cut out, as
torchvision's Resize and CenterCrop. Pixels are those of torchvision on Pillow's images, for the same parts.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import io
import math
import os
from typing import Any, NamedTuple, Protocol

import numpy as np

from smskd_jax.data import host_rng
from smskd_jax.data.image_io import open_image
from smskd_jax.errors import UserError

MAX_ATTEMPTS = 10
ASPECT_RATIO_RANGE = (3 / 4, 4 / 3)  # width over height


class CropConfig(NamedTuple):
  """How photographs become squares."""

  size: int  # pixels
  min_area: float = 0.08  # of the part to train on, as a share of the photograph; the greatest is all of it
  center_fraction: float = 0.875  # of the shorter side, the share that is tested on: 224 of 256


class Box(NamedTuple):
  """A part of an image, in pixels."""

  left: int
  top: int
  right: int
  bottom: int


class RecordSource(Protocol):
  """Encoded images."""

  def read(self, index: int) -> bytes:
    """The i-th."""

  def name(self, index: int) -> str:
    """Of the i-th, for messages."""


class LazyImages:
  """To others an array [n, side, side, 3] of uint8, whose `[rows]` are the middles of photographs.

  It may be pickled: processes of their own may decode. Indices are arrays or slices; a mask is for `only`.
  """

  ndim, dtype = 4, np.dtype(np.uint8)

  def __init__(self, records: RecordSource, indices: np.ndarray, crop: CropConfig, fingerprint: str):
    """Reads nothing yet.

    Args:
      records: all there are.
      rows: [n], of those that are meant.
      squares: how they are cut.
      fingerprint: of the records.
    """
    self._records, self._indices, self._crop, self._records_fingerprint = records, indices, crop, fingerprint

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """[n, h, w, c], as of an array."""
    return (len(self._indices), self._crop.size, self._crop.size, 3)

  @property
  def fingerprint(self) -> str:
    """Of the records and of how they are cut."""
    return f"{self._records_fingerprint} {self._crop}"

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, rows: Any) -> np.ndarray:
    """The middles of some: [*rows, side, side, 3].

    Raises:
      UserError: one cannot be decoded.
    """
    rows = np.arange(len(self))[rows]
    cut = lambda row: center_crop(self._open_image(row), self._crop)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow lets go of the interpreter
      squares = list(pool.map(cut, rows.ravel()))
    return np.reshape(squares, (*rows.shape, *self.shape[1:])).astype(np.uint8, copy=False)

  def take(self, indices: np.ndarray) -> "LazyImages":
    """Some of them, by their places or a mask."""
    return LazyImages(self._records, self._indices[indices], self._crop, self._records_fingerprint)

  def random_resized_crops(
    self, indices: np.ndarray, seed: int, repeat_ids: Sequence[tuple[int, int]]
  ) -> np.ndarray:
    """Random parts of photographs.

    Args:
      rows: [b].
      seed: that they are drawn from.
      visits: b, of each the epoch and which time it comes in it.

    Returns:
      [b, side, side, 3], each a function of the seed, its visit and its row alone.

    Raises:
      UserError: one cannot be decoded.
    """
    shown = np.empty((len(indices), *self.shape[1:]), np.uint8)
    for i, (row, visit) in enumerate(zip(indices, repeat_ids, strict=True)):
      drawn = host_rng.uniform(seed, host_rng.CROP_STREAM, (int(row), *visit), 4 * MAX_ATTEMPTS).reshape(
        MAX_ATTEMPTS, 4
      )
      image = self._open_image(row)
      width, height = image.size
      part = image.crop(random_crop_box(width, height, drawn, self._crop.min_area))
      shown[i] = _resize_to_square(part, self._crop.size)
    return shown

  def _open_image(self, row: int) -> Any:
    """The photograph, in colours."""
    i = int(self._indices[row])
    try:
      image = open_image(io.BytesIO(self._records.read(i)), self._records.name(i))
    except (ValueError, OSError) as error:
      raise UserError(f"data.source: {error}") from None
    return image if image.mode == "RGB" else image.convert("RGB")


def random_crop_box(width: int, height: int, uniforms: np.ndarray, min_area: float) -> Box:
  """The part of an image to train on.

  Args:
    width: pixels.
    height: pixels.
    drawn: [tries, 4], numbers in [0, 1): for area, aspect ratio, top and left.
    least_area: as in `Squares`.
  """
  shortest, longest = map(math.log, ASPECT_RATIO_RANGE)
  for of_area, of_aspect, of_top, of_left in uniforms:
    area = width * height * (min_area + (1 - min_area) * of_area)
    aspect = math.exp(shortest + (longest - shortest) * of_aspect)
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = int(of_top * (height - h + 1)), int(of_left * (width - w + 1))
      return Box(left, top, left + w, top + h)
  least, most = ASPECT_RATIO_RANGE
  w = min(width, round(height * most))
  h = min(height, round(width / least))
  return Box((width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h)


def center_crop(image: Any, crop: CropConfig) -> np.ndarray:
  """The middle of one of Pillow's images: [side, side, 3]."""
  from PIL import Image

  side, short = crop.size, round(crop.size / crop.center_fraction)
  width, height = image.size
  size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
  left, top = (round((length - side) / 2) for length in size)
  resized = image.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(resized.crop((left, top, left + side, top + side)))


def _resize_to_square(image: Any, size: int) -> np.ndarray:
  from PIL import Image

  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
