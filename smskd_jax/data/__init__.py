"""Data sets: `load` makes arrays in memory of any source; `views` makes views of them on the device.

fashion_mnist_small  6,000 + 2,000 images that come with this package: the default
digits               scikit-learn's 8x8 digits
fashion_mnist        the IDX files of Debian's package dataset-fashion-mnist, or of data.folder
cifar10, cifar100    the official binary archive in data.folder ("data"), or in its downloads/manual
tiny_imagenet        tiny-imagenet-200 in data.folder ("data"), as its archive unpacks
cifar10_jpeg         JPEG copies beside the checkout, for tests and benchmarks
npz:FILE             your own arrays train_images, train_labels, test_images, test_labels, perhaps class_names
folder:DIR           your own files train/CLASS/*.png and test/CLASS/*.png, or .jpg, or .jpeg
tfds:NAME            a data set that TensorFlow Datasets has prepared in data.folder, read without TensorFlow

The last two can be streamed too: images of many sizes, more than memory holds, are then read and cut when they are
needed.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from smskd_jax.data import (
  cifar,
  cifar_jpeg,
  digits,
  idx,
  image_folder,
  npz,
  resize,
  splits,
  tfds,
  tiny_imagenet,
)
from smskd_jax.data.dataset import Dataset, RawSplits, Split, validate_and_build
from smskd_jax.data.lazy_images import CropConfig
from smskd_jax.errors import UserError, unknown_name_error

__all__ = ["SOURCES", "Dataset", "Split", "load"]

# A reader takes what follows the colon, and data.folder. Names that end in a colon need something after it.
SOURCES: Mapping[str, Callable[[str, str], RawSplits]] = MappingProxyType(
  {
    "fashion_mnist_small": npz.read_fashion_mnist_small,
    "digits": digits.read_digits,
    "fashion_mnist": idx.read_fashion_mnist,
    "cifar10": cifar.read_cifar10,
    "cifar100": cifar.read_cifar100,
    "tiny_imagenet": tiny_imagenet.read_tiny_imagenet,
    "cifar10_jpeg": cifar_jpeg.cifar10_jpeg,
    "npz:": npz.read_npz,
    "folder:": image_folder.read_image_folder,
    "tfds:": tfds.read_tfds,
  }
)

# Readers of what can be streamed, which are also told how photographs are cut.
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
  """Reads a data set into memory, or finds out where its images are.

  Args:
    source: a name of `SOURCES`, with what follows the colon where it ends in one.
    folder: where the files are, for sources that look for files of a fixed name; "" for the default place.
    validation: the fraction of each training class to hold out, 0 <= fraction < 1; 0 for no validation split.
    split_seed: which examples that holds out.
    image_size: the side of the square that every image is resized to; 0 leaves them as they are.
    unlabeled: another source, in the same folder where it needs one, whose training images come without their labels,
      resized to the shape of the others; "" for none.
    streamed: leave images where they are, and read them when they are asked for, cut to squares of image_size.
    min_crop_area: of streamed images, the least share of one that is trained on.
    center_crop_fraction: of streamed images, the share of the shorter side that is tested on.

  Returns:
    The data set. Its mean, std and fingerprint do not depend on what is held out.

  Raises:
    UserError: in one line, the field, its value and what to do.
  """
  splits.check_split_options(validation, split_seed)
  if image_size and image_size < 8:
    raise UserError(
      f"data.image_size: {image_size} is too small; the networks need at least 8, or 0 for no change"
    )
  if streamed and not image_size:
    raise UserError("data.image_size: 0, but streamed images are cut to squares of one size; give it, as 224")
  squares = CropConfig(image_size, min_crop_area, center_crop_fraction) if streamed else None
  dataset = _load_source("data.source", source, folder, squares)
  if image_size and not streamed:
    dataset = resize.resize_dataset(dataset, image_size)
  if unlabeled:
    images = _load_source("data.unlabeled", unlabeled, folder, squares).train.image
    # Photographs are cut to one shape as they are read.
    shaped = images if streamed else resize.resize_images(images[:], dataset.image_shape)
    dataset = dataset._replace(unlabeled=shaped)
  return splits.split_validation(dataset, validation, split_seed)


def _load_source(field: str, source: str, folder: str, crop: CropConfig | None) -> Dataset:
  """A source's data set; what its reader has to say of `data.source` is said of the field."""
  head, colon, argument = source.partition(":")
  if head + colon not in SOURCES:
    raise unknown_name_error(field, source, SOURCES)
  if colon and not argument:
    raise UserError(f"{field}: {source!r} lacks what follows the colon; see smskd_jax/data/__init__.py")
  if crop and head + colon not in STREAMED_SOURCES:
    raise UserError(
      f"data.streamed: True, but {field} {source!r} is read into memory; stream one of: {', '.join(STREAMED_SOURCES)}"
    )
  try:
    if crop:
      return validate_and_build(source, STREAMED_SOURCES[head + colon](argument, folder, crop))
    return validate_and_build(source, SOURCES[head + colon](argument, folder))
  except UserError as error:
    raise UserError(str(error).replace("data.source", field, 1)) from error
