"""PyTorch checkpoints read without PyTorch, by a reader that can build nothing but tensors.

A file that `torch.save` has written since PyTorch 1.6 is an uncompressed zip archive: `data.pkl` is a pickle in which
the bytes of every tensor stand as a reference to a member `data/N`. A pickle is a program. This reader runs none of it
but what builds dictionaries, lists, numbers, strings and tensors; everything else is refused by its name.
"""

from collections import OrderedDict
from collections.abc import Mapping
import io
from pathlib import Path
import pickle
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from smskd_jax.errors import UserError

STORAGES: Mapping[str, Any] = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}


class _Refused(pickle.UnpicklingError):
  """Something other than data."""


class _Storage(NamedTuple):
  """The type of a storage, as a pickle names it."""

  dtype: Any


class _Ignored:
  """Stands for options and numbers that training scripts leave beside the weights; holds nothing, does nothing."""

  def __init__(self, *args: Any, **kwargs: Any):
    """Takes anything."""

  def __setstate__(self, state: Any) -> None:
    """Takes anything."""


# Names that public training scripts leave in their checkpoints, none of which is needed.
_IGNORED = {
  ("argparse", "Namespace"),
  ("numpy.core.multiarray", "scalar"),
  ("numpy._core.multiarray", "scalar"),
  ("numpy", "dtype"),
  ("_codecs", "encode"),
}


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
  """A tensor's elements, copied out of its storage; never more than the storage has."""
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
    raise _Refused("a tensor of impossible shape")
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if 0 not in size and last >= storage.size:
    raise _Refused("a tensor larger than its data")
  if 0 in size:
    return np.empty(size, storage.dtype)
  # Repeated elements (steps of 0) would let a small file fill the memory.
  if int(np.prod(size, dtype=object)) > storage.size:
    raise _Refused("a tensor larger than its data")
  strides = tuple(step * storage.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
  return data


_ALLOWED: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _tensor,
  ("torch._utils", "_rebuild_parameter"): _parameter,
  ("torch", "Size"): tuple,
  **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
  **dict.fromkeys(_IGNORED, _Ignored),
}


class _Unpickler(pickle.Unpickler):
  """Builds data and tensors; raises `_Refused` where a pickle asks for anything else."""

  def __init__(self, archive: zipfile.ZipFile, root: str):
    """Reads `root/data.pkl` of an archive."""
    super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), encoding="utf-8")
    self._archive, self._root = archive, root
    self._storages: dict[str, np.ndarray] = {}

  def find_class(self, module: str, name: str) -> Any:
    """What may be built."""
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise _Refused(f"it asks for {module}.{name}, which is no tensor; nothing was executed") from None

  def persistent_load(self, reference: Any) -> np.ndarray:
    """The elements of a storage [n]."""
    kind, storage, key, _, count = reference
    if kind != "storage" or not isinstance(storage, _Storage):
      raise _Refused("a reference to something other than tensors")
    if key not in self._storages:
      content = self._archive.read(f"{self._root}/data/{key}")
      elements = np.frombuffer(content, np.dtype(storage.dtype).newbyteorder("<"))
      if elements.size < count:
        raise _Refused("a tensor larger than its data")
      self._storages[key] = elements.astype(storage.dtype)
    return self._storages[key]


def read(path: Path) -> Any:
  """What `torch.save` has saved, with arrays for tensors.

  Args:
    path: a file. One of the older kind, which is not a zip archive, is given to PyTorch where that is installed.

  Raises:
    UserError: the file is broken, or holds more than data.
  """
  if not path.is_file():
    raise UserError(f"{path}: there is no such file")
  try:
    if not zipfile.is_zipfile(path):
      return _read_with_torch(path)
    with zipfile.ZipFile(path) as archive:
      roots = [name.rpartition("/")[0] for name in archive.namelist() if name.endswith("/data.pkl")]
      if len(roots) != 1:
        raise UserError(f"{path}: a zip archive, but not one that torch.save has written")
      return _Unpickler(archive, roots[0]).load()
  except _Refused as error:
    raise UserError(f"{path}: refused: {error}") from error
  except UserError:
    raise
  except (
    Exception
  ) as error:  # a broken pickle or archive makes pickle, zipfile and NumPy raise nearly anything
    raise UserError(
      f"{path}: broken or not a PyTorch checkpoint ({type(error).__name__}: {error})"
    ) from error


def _read_with_torch(path: Path) -> Any:
  with open(path, "rb") as file:
    start = file.read(2)
  if start[:1] != b"\x80":
    raise UserError(f"{path}: not a PyTorch checkpoint: neither a zip archive nor a pickle")
  try:
    import torch  # type: ignore[import-not-found,unused-ignore]
  except ImportError:
    raise UserError(
      f"{path}: of PyTorch's older file format or truncated; install torch, or save it again with a PyTorch since 1.6"
    ) from None

  def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {key: plain(child) for key, child in value.items()}
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value

  return plain(torch.load(path, map_location="cpu", weights_only=True))


def state_dict(content: Any, source: Path) -> dict[str, np.ndarray]:
  """The weights in what `read` has returned: itself, or what lies under `model`, `state_dict` or `net`.

  Raises:
    UserError: there are none.
  """
  candidates = [content]
  if isinstance(content, Mapping):
    candidates += [content[name] for name in ("model", "state_dict", "net") if name in content]
  for candidate in candidates:
    if (
      isinstance(candidate, Mapping)
      and candidate
      and all(isinstance(x, np.ndarray) for x in candidate.values())
    ):
      return dict(candidate)
  found = (
    f"its keys are {', '.join(map(str, content))}" if isinstance(content, Mapping) else type(content).__name__
  )
  raise UserError(
    f"{source}: holds no state_dict, neither by itself nor under model, state_dict or net; {found}"
  )
