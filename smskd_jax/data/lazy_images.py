"""Images of many sizes, decoded on access and cropped to squares of one size.

Training images are random resized crops: area and aspect ratio are drawn, then the position. Szegedy et al., "Going
Deeper with Convolutions", CVPR 2015, section 6; the ten attempts, and the central crop if none fits, are those of
torchvision's RandomResizedCrop. Test images are the centre: the shorter side is resized and the middle cropped, as by
torchvision's Resize and CenterCrop. For equal crops, pixels equal torchvision's on Pillow images.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from smskd_jax.data import host_rng
from smskd_jax.errors import UserError

MAX_ATTEMPTS = 10
ASPECT_RATIO_RANGE = (3 / 4, 4 / 3)  # width / height


class CropConfig(NamedTuple):
  """Crops of streamed images."""

  size: int  # side of the square, pixels
  min_area: float = 0.08  # of a random crop, as a fraction of the image; the maximum is 1
  center_fraction: float = 0.875  # of the shorter side, kept by the central crop: 224 of 256


class Box(NamedTuple):
  """A rectangle in an image, in pixels."""

  left: int
  top: int
  right: int
  bottom: int


class RecordSource(Protocol):
  """Random access to encoded images."""

  def read(self, index: int) -> bytes:
    """Bytes of one encoded image."""

  def name(self, index: int) -> str:
    """Name of one image, for messages."""


class LazyImages:
  """Read-only array [n, size, size, 3], uint8, of central crops that are decoded on access.

  Indices are arrays or slices; `take` selects without decoding. Instances can be pickled, for worker processes.
  """

  ndim, dtype = 4, np.dtype(np.uint8)

  def __init__(self, records: RecordSource, indices: np.ndarray, crop: CropConfig, fingerprint: str):
    """Reads nothing yet.

    Args:
      records: encoded images.
      indices: [n], the records that this array holds.
      crop: size and bounds of the crops.
      fingerprint: of the records.
    """
    self._records, self._indices, self._crop, self._records_fingerprint = records, indices, crop, fingerprint

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """[n, size, size, 3]."""
    return (len(self._indices), self._crop.size, self._crop.size, 3)

  @property
  def fingerprint(self) -> str:
    """Fingerprint of the records and of the crops."""
    return f"{self._records_fingerprint} {self._crop}"

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, indices: Any) -> np.ndarray:
    """Central crops: [*indices, size, size, 3].

    Raises:
      UserError: an image cannot be decoded.
    """
    indices = np.arange(len(self))[indices]

    def read(index):
      return center_crop(self._open_image(index), self._crop)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow releases the interpreter lock
      crops = list(pool.map(read, indices.ravel()))
    return np.reshape(crops, (*indices.shape, *self.shape[1:])).astype(np.uint8, copy=False)

  def take(self, indices: np.ndarray) -> "LazyImages":
    """Images selected by indices or a mask, not decoded."""
    return LazyImages(self._records, self._indices[indices], self._crop, self._records_fingerprint)

  def random_resized_crops(
    self, indices: np.ndarray, seed: int, repeat_ids: Sequence[tuple[int, int]]
  ) -> np.ndarray:
    """Random crops, each a function of the seed, the repeat id and the index alone.

    Args:
      indices: [b].
      seed: of the random numbers.
      repeat_ids: b pairs (epoch, occurrence of the image within the epoch).

    Returns:
      [b, size, size, 3], uint8.

    Raises:
      UserError: an image cannot be decoded.
    """
    crops = np.empty((len(indices), *self.shape[1:]), np.uint8)
    for i, (index, repeat_id) in enumerate(zip(indices, repeat_ids, strict=True)):
      counter = (int(index), *repeat_id)
      uniforms = host_rng.uniform(seed, host_rng.CROP_STREAM, counter, 4 * MAX_ATTEMPTS)
      image = self._open_image(index)
      width, height = image.size
      box = random_crop_box(width, height, uniforms.reshape(MAX_ATTEMPTS, 4), self._crop.min_area)
      crops[i] = _resize_to_square(image.crop(box), self._crop.size)
    return crops

  def _open_image(self, index: int) -> Any:
    """Pillow image in RGB."""
    i = int(self._indices[index])
    try:
      image = open_image(io.BytesIO(self._records.read(i)), self._records.name(i))
    except (ValueError, OSError) as error:
      raise UserError(f"data.source: {error}") from None
    return image if image.mode == "RGB" else image.convert("RGB")


def open_image(file: Path | BinaryIO, name: str) -> Any:
  """Decodes an image with Pillow: mode L for grey images, else RGB.

  Transparency and palette are removed.

  Args:
    file: to read.
    name: of the file, for messages.

  Raises:
    ValueError: the file cannot be read, or its pixels are of an unsupported kind.
  """
  from PIL import Image

  try:
    with Image.open(file) as image:
      if image.mode in ("L", "RGB"):
        image.load()
        return image
      if image.mode in ("1", "LA"):
        return image.convert("L")
      if image.mode in ("RGBA", "P", "PA", "CMYK", "YCbCr"):
        # Through RGBA, since Pillow warns about a palette with transparency.
        return image.convert("RGBA").convert("RGB")
      mode = image.mode
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, of bad files
    raise ValueError(f"cannot read {name} ({error}); replace or remove it") from None
  raise ValueError(f"{name} has pixels of kind {mode}; convert it to 8-bit grey or RGB")


def random_crop_box(width: int, height: int, uniforms: np.ndarray, min_area: float) -> Box:
  """Rectangle of a random area and aspect ratio at a random position.

  It is central if no attempt fits.

  Args:
    width: of the image, pixels.
    height: of the image, pixels.
    uniforms: [attempts, 4], numbers in [0, 1): area, aspect ratio, top, left.
    min_area: smallest area, as a fraction of the image.
  """
  min_log, max_log = map(math.log, ASPECT_RATIO_RANGE)
  for u_area, u_aspect, u_top, u_left in uniforms:
    area = width * height * (min_area + (1 - min_area) * u_area)
    aspect = math.exp(min_log + (max_log - min_log) * u_aspect)
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      top, left = int(u_top * (height - h + 1)), int(u_left * (width - w + 1))
      return Box(left, top, left + w, top + h)
  min_aspect, max_aspect = ASPECT_RATIO_RANGE
  w = min(width, round(height * max_aspect))
  h = min(height, round(width / min_aspect))
  return Box((width - w) // 2, (height - h) // 2, (width - w) // 2 + w, (height - h) // 2 + h)


def center_crop(image: Any, crop: CropConfig) -> np.ndarray:
  """Central square of a Pillow image: [size, size, 3], uint8."""
  from PIL import Image

  shorter = round(crop.size / crop.center_fraction)
  width, height = image.size
  size = (
    (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
  )
  left, top = (round((length - crop.size) / 2) for length in size)
  resized = image.resize(size, Image.Resampling.BILINEAR)
  return np.asarray(resized.crop((left, top, left + crop.size, top + crop.size)))


def _resize_to_square(image: Any, size: int) -> np.ndarray:
  from PIL import Image

  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
