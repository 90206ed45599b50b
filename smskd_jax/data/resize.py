"""Images of another size and number of channels, made once, on the host."""

from pathlib import Path

import numpy as np

from smskd_jax.data.dataset import Dataset, Split, fingerprint
from smskd_jax.errors import UserError

MAX_IMAGE_SIZE = 4096  # pixels, the side of a square
_LUMA_WEIGHTS = np.array([299, 587, 114])  # of red, green and blue, ITU-R 601, in thousandths


def resize_images(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
  """Resizes by Pillow's bilinear filter, which averages where it shrinks; repeats grey or takes the luma of colours.

  Args:
    image: [n, h, w, c], uint8, c 1 or 3.
    shape: of the result's images, [h, w, c].

  Returns:
    [n, *shape], uint8; the images themselves where they have that shape.
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
  resized = Image.fromarray(image[..., 0] if grey else image).resize(
    (width, height), Image.Resampling.BILINEAR
  )
  return np.asarray(resized)[..., None] if grey else np.asarray(resized)


def _check_memory(num_bytes: int, description: str) -> None:
  """Refuses to make what is larger than the memory that is available now, where the system tells of it."""
  if not Path("/proc/meminfo").is_file():
    return
  lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
  free = int(lines["MemAvailable"].split()[0]) * 1024
  if num_bytes > free:
    raise UserError(
      f"data.image_size: {description} need {num_bytes / 2**30:.1f} GiB of memory, but {free / 2**30:.1f} GiB are "
      "free; use a smaller image_size, or streamed images"
    )


def resize_dataset(dataset: Dataset, size: int) -> Dataset:
  """A data set of square images. Mean and deviation stay those of the images as they were.

  Raises:
    UserError: they would not fit into memory.
  """
  count = len(dataset.train.label) + len(dataset.test.label)
  _check_memory(count * size * size * dataset.image_shape[2], f"{count:,} images of {size}x{size}")
  shape = (size, size, dataset.image_shape[2])
  train, test = (
    Split(resize_images(split.image[:], shape), split.label) for split in (dataset.train, dataset.test)
  )
  names = dataset.class_names
  return dataset._replace(train=train, test=test, fingerprint=fingerprint(train, test, names))
