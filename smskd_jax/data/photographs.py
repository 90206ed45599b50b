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

from smskd_jax.data import philox
from smskd_jax.data.pictures import open_picture
from smskd_jax.errors import UserError

TRIES = 10
ASPECTS = (3 / 4, 4 / 3)  # width over height


class Squares(NamedTuple):
  """How photographs become squares."""

  side: int  # pixels
  least_area: float = 0.08  # of the part to train on, as a share of the photograph; the greatest is all of it
  central: float = 0.875  # of the shorter side, the share that is tested on: 224 of 256


class Box(NamedTuple):
  """A part of an image, in pixels."""

  left: int
  top: int
  right: int
  bottom: int


class Records(Protocol):
  """Encoded images."""

  def read(self, i: int) -> bytes:
    """The i-th."""

  def name(self, i: int) -> str:
    """Of the i-th, for messages."""


class Photographs:
  """To others an array [n, side, side, 3] of uint8, whose `[rows]` are the middles of photographs.

  It may be pickled: processes of their own may decode. Indices are arrays or slices; a mask is for `only`.
  """

  ndim, dtype = 4, np.dtype(np.uint8)

  def __init__(self, records: Records, rows: np.ndarray, squares: Squares, fingerprint: str):
    """Reads nothing yet.

    Args:
      records: all there are.
      rows: [n], of those that are meant.
      squares: how they are cut.
      fingerprint: of the records.
    """
    self._records, self._rows, self._squares, self._of_records = records, rows, squares, fingerprint

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """[n, h, w, c], as of an array."""
    return (len(self._rows), self._squares.side, self._squares.side, 3)

  @property
  def fingerprint(self) -> str:
    """Of the records and of how they are cut."""
    return f"{self._of_records} {self._squares}"

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, rows: Any) -> np.ndarray:
    """The middles of some: [*rows, side, side, 3].

    Raises:
      UserError: one cannot be decoded.
    """
    rows = np.arange(len(self))[rows]
    cut = lambda row: middle(self._open(row), self._squares)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow lets go of the interpreter
      squares = list(pool.map(cut, rows.ravel()))
    return np.reshape(squares, (*rows.shape, *self.shape[1:])).astype(np.uint8, copy=False)

  def only(self, rows: np.ndarray) -> "Photographs":
    """Some of them, by their places or a mask."""
    return Photographs(self._records, self._rows[rows], self._squares, self._of_records)

  def random_parts(self, rows: np.ndarray, seed: int, visits: Sequence[tuple[int, int]]) -> np.ndarray:
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
    shown = np.empty((len(rows), *self.shape[1:]), np.uint8)
    for i, (row, visit) in enumerate(zip(rows, visits, strict=True)):
      drawn = philox.uniform(seed, philox.SQUARE, (int(row), *visit), 4 * TRIES).reshape(TRIES, 4)
      image = self._open(row)
      width, height = image.size
      part = image.crop(random_box(width, height, drawn, self._squares.least_area))
      shown[i] = _square(part, self._squares.side)
    return shown

  def _open(self, row: int) -> Any:
    """The photograph, in colours."""
    i = int(self._rows[row])
    try:
      image = open_picture(io.BytesIO(self._records.read(i)), self._records.name(i))
    except (ValueError, OSError) as error:
      raise UserError(f"data.source: {error}") from None
    return image if image.mode == "RGB" else image.convert("RGB")


def random_box(width: int, height: int, drawn: np.ndarray, least_area: float) -> Box:
  """The part of an image to train on.

  Args:
    width: pixels.
    height: pixels.
    drawn: [tries, 4], numbers in [0, 1): for area, aspect ratio, top and left.
    least_area: as in `Squares`.
  """
  shortest, longest = map(math.log, ASPECTS)
  for of_area, of_aspect, of_top, of_left in drawn:
    area = width * height * (least_area + (1 - least_area) * of_area)
    aspect = math.exp(shortest + (longest - shortest) * of_aspect)
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = int(of_top * (height - h + 1)), int(of_left * (width - w + 1))
      return Box(left, top, left + w, top + h)
  least, most = ASPECTS
  w = min(width, round(height * most))
  h = min(height, round(width / least))
  return Box((width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h)


def middle(image: Any, squares: Squares) -> np.ndarray:
  """The middle of one of Pillow's images: [side, side, 3]."""
  from PIL import Image

  side, short = squares.side, round(squares.side / squares.central)
  width, height = image.size
  size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
  left, top = (round((length - side) / 2) for length in size)
  resized = image.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(resized.crop((left, top, left + side, top + side)))


def _square(image: Any, side: int) -> np.ndarray:
  from PIL import Image

  return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
