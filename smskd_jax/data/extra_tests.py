"""Additional test sets: CIFAR-10.1, and corrupted copies of the test images.

cifar10.1         cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy in data.folder
NAME:SEVERITY     a corruption of `corruptions.py`, severity 1 to 5
corruptions:S     all corruptions at severity S
corruptions       all corruptions at all severities
"""

from collections.abc import Callable, Iterator, Mapping
import functools
import pathlib

import numpy as np

from smskd_jax.data import corruptions
from smskd_jax.data.dataset import Dataset, Split, resize_images
from smskd_jax.errors import UserError, unknown_name_error

_CIFAR_10_1 = "cifar10.1"
_ALL_CORRUPTIONS = "corruptions"


def expand_names(field: str, requested: tuple[str, ...]) -> tuple[str, ...]:
  """Names of single test sets, each once, in place of names of groups.

  Raises:
    UserError: an unknown name.
  """
  return tuple(dict.fromkeys(name for group in requested for name in _expand_name(field, group)))


def _expand_name(field: str, name: str) -> Iterator[str]:
  head, _, severity = str(name).partition(":")
  if name == _CIFAR_10_1:
    yield name
    return
  if head not in (_ALL_CORRUPTIONS, *corruptions.CORRUPTIONS):
    raise unknown_name_error(
      field, name, (_CIFAR_10_1, f"{_ALL_CORRUPTIONS}:SEVERITY", *corruptions.CORRUPTIONS)
    )
  if severity not in ("", *map(str, corruptions.SEVERITIES)):
    raise UserError(f"{field}: {name!r} has no severity from 1 to 5 behind its colon")
  for corruption in corruptions.CORRUPTIONS if head == _ALL_CORRUPTIONS else (head,):
    for s in [severity] if severity else corruptions.SEVERITIES:
      yield f"{corruption}:{s}"


def load_test_set(field: str, name: str, dataset: Dataset, folder: str) -> Split:
  """Loads one test set.

  Args:
    field: of the config, for messages.
    name: as returned by `expand_names`.
    dataset: source of the corrupted copies, and of the image shape.
    folder: of files; "" for `data`.

  Raises:
    UserError: files are missing or damaged, or do not suit the data set.
  """
  if name == _CIFAR_10_1:
    return _cifar_10_1(field, dataset, pathlib.Path(folder or "data"))
  corruption, _, severity = name.partition(":")
  return dataset.test._replace(image=corruptions.corrupt(dataset.test.image[:], corruption, int(severity)))


def lazy_test_sets(
  field: str, requested: tuple[str, ...], dataset: Dataset, folder: str
) -> Mapping[str, Callable[[], Split]]:
  """Test sets by name, each computed on call.

  Files are read once in advance, so that errors show at once.

  Raises:
    UserError: as `expand_names` and `load_test_set`.
  """
  sets: dict[str, Callable[[], Split]] = {}
  for name in expand_names(field, requested):
    sets[name] = functools.partial(load_test_set, field, name, dataset, folder)
    if name == _CIFAR_10_1:
      sets[name]()
  return sets


def _cifar_10_1(field: str, dataset: Dataset, folder: pathlib.Path) -> Split:
  """CIFAR-10.1, version 6.

  Recht, Roelofs, Schmidt, Shankar, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018, arXiv 1806.00451.

  2,000 images, version 6.
  """
  arrays = []
  for part in ("data", "labels"):
    path = folder / f"cifar10.1_v6_{part}.npy"
    try:
      arrays.append(np.load(path, allow_pickle=False))
    except FileNotFoundError:
      url = "https://github.com/modestyachts/CIFAR-10.1, datasets/"
      raise UserError(
        f"{field}: {path} is missing; get it from {url}, or name its folder in data.folder"
      ) from None
    except (OSError, ValueError) as error:
      raise UserError(f"{field}: {path} cannot be read ({error}); get it again") from error
  image, label = arrays
  is_cifar10 = dataset.image_shape[2] == 3 and len(dataset.class_names) == 10
  if not is_cifar10:
    raise UserError(
      f"{field}: {_CIFAR_10_1!r} tests networks for CIFAR-10, and {dataset.name!r} is another data set"
    )
  fits = image.dtype == np.uint8 and image.shape[1:] == (32, 32, 3) and label.shape == image.shape[:1]
  if not fits or not np.issubdtype(label.dtype, np.integer) or not 0 <= label.min() <= label.max() < 10:
    raise UserError(
      f"{field}: {folder} holds other arrays than CIFAR-10.1's {image.shape} {label.shape}; get them again"
    )
  return Split(resize_images(image, dataset.image_shape), label.astype(np.int32))
