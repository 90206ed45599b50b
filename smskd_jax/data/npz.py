"""Arrays from .npz files: a user's own, and the small Fashion-MNIST of this package."""

from collections.abc import Iterable
import pathlib
import zipfile
import zlib

import numpy as np

from smskd_jax.data.dataset import RawSplits, Split
from smskd_jax.errors import UserError

FASHION_MNIST_SMALL_FILE = pathlib.Path(__file__).with_name("fashion_mnist_small.npz")

REQUIRED_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def read_fashion_mnist_small(argument: str, folder: str) -> RawSplits:
  """600 + 200 images of each class of Fashion-MNIST, [28, 28], in random order; package data.

  Drawn from the full set with numpy.random.RandomState(0): for train, then for test, a permutation of each class gives
  its images, and a permutation of these the order. tests/data/npz_test.py reproduces the file.
  """
  del argument, folder
  return _read_splits(FASHION_MNIST_SMALL_FILE, "data.source: 'fashion_mnist_small'")


def read_npz(argument: str, folder: str) -> RawSplits:
  """Arrays of a user's file: those of `REQUIRED_KEYS` and, optionally, class_names."""
  del folder
  return _read_splits(pathlib.Path(argument), f"data.source: 'npz:{argument}'")


def _read_splits(path: pathlib.Path, where: str) -> RawSplits:
  arrays = read_arrays(path, REQUIRED_KEYS, where=where, optional=("class_names",))
  names = arrays.get("class_names", np.array([], str))
  if names.dtype.kind != "U":
    raise UserError(f"{where}: class_names are {names.dtype}; store them as strings, numpy.array([...], str)")
  train, test = (Split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test"))
  return RawSplits(train, test, tuple(names.ravel().tolist()))


def read_arrays(
  path: pathlib.Path, keys: Iterable[str], *, where: str, optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
  """Reads arrays from an .npz file, in the order of the keys.

  Args:
    path: the file.
    keys: of required arrays.
    where: beginning of errors: the field, with the value if that helps.
    optional: keys of arrays that may be absent.

  Returns:
    The arrays by key.

  Raises:
    UserError: the file is absent, no .npz, lacks a key or is damaged.
  """
  if not path.is_file():
    raise UserError(f"{where}: no file {path.absolute()}; check the path")
  if not zipfile.is_zipfile(path):
    raise UserError(f"{where}: {path} is not an .npz file, or not all of one; write it with numpy.savez")
  with np.load(path) as file:
    missing = [key for key in keys if key not in file]
    if missing:
      raise UserError(
        f"{where}: {path} lacks {', '.join(missing)} (it holds {', '.join(file) or 'nothing'}); add them"
      )
    return {key: _read_array(file, key, where) for key in (*keys, *(key for key in optional if key in file))}


def _read_array(file: np.lib.npyio.NpzFile, key: str, where: str) -> np.ndarray:
  fix = "store plain numbers or strings with numpy.savez"
  try:
    array = file[key]
  except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
    # NumPy raises ValueError for an array of Python objects, which it does not unpickle.
    raise UserError(f"{where}: cannot read {key} ({error}); {fix}") from None
  if not isinstance(array, np.ndarray):  # NumPy returns the bytes of a member that is no .npy
    raise UserError(f"{where}: {key} is not an array; {fix}")
  return array
