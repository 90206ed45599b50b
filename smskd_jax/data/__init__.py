"""Data sets: `load` reads any source; `views` augments images on the device.

  source               images
  fashion_mnist_small  6,000 + 2,000 images, package data: the default
  digits               scikit-learn's 8x8 digits
  fashion_mnist        IDX files in data.folder, or of Debian's package dataset-fashion-mnist
  cifar10, cifar100    the official binary archive in data.folder ("data"), or in its downloads/manual
  tiny_imagenet        tiny-imagenet-200 in data.folder ("data"), as its archive unpacks
  npz:FILE             a user's arrays train_images, train_labels, test_images, test_labels, optionally class_names
  folder:DIR           a user's files train/CLASS/*.png and test/CLASS/*.png, or .jpg, or .jpeg
  tfds:NAME            a data set that TensorFlow Datasets has prepared in data.folder, read without TensorFlow

`folder:` and `tfds:` can also be streamed: images of any size, more than memory holds, are read and cropped on access.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from smskd_jax.data import archives, image_folder, npz, tfds
from smskd_jax.data.dataset import (
  Dataset,
  RawSplits,
  Split,
  check_split_options,
  resize_dataset,
  resize_images,
  split_validation,
  validate_and_build,
)
from smskd_jax.data.lazy_images import CropConfig
from smskd_jax.errors import UserError, unknown_name_error

__all__ = ["SOURCES", "Dataset", "Split", "load"]

# Readers: (what follows the colon, data.folder) -> arrays. Names that end in a colon need something after it.
SOURCES: Mapping[str, Callable[[str, str], RawSplits]] = MappingProxyType(
  {
    "fashion_mnist_small": npz.read_fashion_mnist_small,
    "digits": archives.read_digits,
    "fashion_mnist": archives.read_fashion_mnist,
    "cifar10": archives.read_cifar10,
    "cifar100": archives.read_cifar100,
    "tiny_imagenet": archives.read_tiny_imagenet,
    "npz:": npz.read_npz,
    "folder:": image_folder.read_image_folder,
    "tfds:": tfds.read_tfds,
  }
)

# Readers of streamed images, which also take the crops.
STREAMED_SOURCES: Mapping[str, Callable[[str, str, CropConfig], RawSplits]] = MappingProxyType(
  {"folder:": image_folder.stream_image_folder, "tfds:": tfds.stream_tfds}
)


def load(
  source: str,
  *,
  folder: str = "",
  validation: float = 0.0,
  split_seed: int = 0,
  image_size: int = 0,
  unlabeled: str = "",
  streamed: bool = False,
  min_crop_area: float = 0.08,
  center_crop_fraction: float = 0.875,
) -> Dataset:
  """Reads a data set into memory, or lists its images for streaming.

  Args:
    source: a name of `SOURCES`, followed by its argument if the name ends in a colon.
    folder: folder of the files, for sources that look for files of a fixed name; "" for the source's default.
    validation: fraction of each training class to move to a validation split, 0 <= fraction < 1; 0 for no such split.
    split_seed: of the validation split.
    image_size: side of the square that every image is resized to, pixels; 0 leaves sizes unchanged.
    unlabeled: another source, read from the same folder, whose training images become `Dataset.unlabeled`, resized to
      the shape of the others; "" for none.
    streamed: leave images in their files, and decode and crop them to image_size on access.
    min_crop_area: of streamed images, the smallest area of a random training crop, as a fraction of the image.
    center_crop_fraction: of streamed images, the fraction of the shorter side that the central test crop keeps.

  Returns:
    The data set. Its mean, std and fingerprint do not depend on the validation split.

  Raises:
    UserError: one line that names the field, the value and the fix.
  """
  check_split_options(validation, split_seed)
  if image_size and image_size < 8:
    raise UserError(
      f"data.image_size: {image_size} is too small; the networks need at least 8, or 0 for no change"
    )
  if streamed and not image_size:
    raise UserError(
      "data.image_size: 0, but streamed images are cropped to squares of one size; give it, as 224"
    )
  crop = CropConfig(image_size, min_crop_area, center_crop_fraction) if streamed else None
  dataset = _load_source("data.source", source, folder, crop)
  if image_size and not streamed:
    dataset = resize_dataset(dataset, image_size)
  if unlabeled:
    images = _load_source("data.unlabeled", unlabeled, folder, crop).train.image
    # Streamed images already have one shape.
    dataset = dataset._replace(
      unlabeled=images if streamed else resize_images(images[:], dataset.image_shape)
    )
  return split_validation(dataset, validation, split_seed)


def _load_source(field: str, source: str, folder: str, crop: CropConfig | None) -> Dataset:
  """Reads and validates a source."""
  head, colon, argument = source.partition(":")
  name = head + colon
  if name not in SOURCES:
    raise unknown_name_error(field, source, SOURCES)
  if colon and not argument:
    raise UserError(f"{field}: {source!r} lacks what follows the colon; see smskd_jax/data/__init__.py")
  if crop and name not in STREAMED_SOURCES:
    raise UserError(
      f"data.streamed: True, but {field} {source!r} is read into memory; stream one of: {', '.join(STREAMED_SOURCES)}"
    )
  try:
    raw = STREAMED_SOURCES[name](argument, folder, crop) if crop else SOURCES[name](argument, folder)
    return validate_and_build(source, raw)
  except UserError as error:
    raise UserError(str(error).replace("data.source", field, 1)) from error
