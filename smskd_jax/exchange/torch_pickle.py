"""Strict unpickler of PyTorch checkpoints: builds tensors, numbers, strings and plain containers, and nothing else.

A pickle is a program. Every name that it refers to is looked up in `_ALLOWED`; any other name is refused, and nothing
is executed. Tensors are views of their storages, so a small file cannot fill the memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import io
import pickle
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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

# (type, key, number of elements) -> the elements [n] of a storage
ReadStorage = Callable[[np.dtype, str, int], np.ndarray]


class Refused(pickle.UnpicklingError):
  """The file holds something other than data, or claims more data than it has."""


class _Storage(NamedTuple):
  """The type of a storage, as a pickle names it."""

  dtype: Any


class _Function(NamedTuple):
  """A function that a pickle may call. A plain function would let the pickle set its attributes."""

  call: Callable

  def __call__(self, *args: Any) -> Any:
    """Calls the function."""
    return self.call(*args)


class _Ignored:
  """Stands for options and counters that training scripts leave beside the weights; stores nothing, does nothing."""

  def __init__(self, *args: Any, **kwargs: Any):
    """Takes anything."""

  def __setstate__(self, state: Any) -> None:
    """Takes anything."""

  def __setitem__(self, key: Any, value: Any) -> None:
    """Takes anything."""


def tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
  """A read-only view of a storage as a tensor; never more elements than the storage has.

  Raises:
    Refused: the shape or the strides reach beyond the storage, or elements repeat.
  """
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
    raise Refused("a tensor of impossible shape")
  if 0 in size:
    return np.empty(size, storage.dtype)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  # Repeated elements (strides of 0) would let a small file fill the memory.
  if last >= storage.size or int(np.prod(size, dtype=object)) > storage.size:
    raise Refused("a tensor larger than its data")
  strides = tuple(step * storage.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


# Names that public training scripts leave in their checkpoints, none of which is needed.
_IGNORED = (
  ("argparse", "Namespace"),
  ("collections", "Counter"),
  ("numpy.core.multiarray", "scalar"),
  ("numpy._core.multiarray", "scalar"),
  ("numpy", "dtype"),
  ("_codecs", "encode"),
  ("torch", "device"),
)

_ALLOWED: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor"): _Function(tensor),
  ("torch._utils", "_rebuild_tensor_v2"): _Function(tensor),
  ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
  ("torch", "Size"): tuple,
  **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
  **dict.fromkeys(_IGNORED, _Ignored),
}


class _Unpickler(pickle.Unpickler):
  """Builds data and tensors; raises `Refused` where a pickle asks for anything else."""

  def __init__(self, program: bytes, read_storage: ReadStorage):
    super().__init__(io.BytesIO(program), encoding="utf-8")
    self._read_storage = read_storage

  def find_class(self, module: str, name: str) -> Any:
    """The object that stands for an allowed name."""
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise Refused(
        f"it asks for {module}.{name}, which is no tensor; nothing was executed. Save the network's state_dict() alone"
      ) from None

  def persistent_load(self, reference: Any) -> np.ndarray:
    """The elements of a storage [n], or, in old files, of a part of one."""
    kind, storage, key, _, count, *view = reference
    if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
      raise Refused("a reference to something other than tensors")
    if type(count) is not int or count < 0:
      raise Refused("a tensor of impossible shape")
    elements = self._read_storage(np.dtype(storage.dtype), key, count)
    if not view or view[0] is None:
      return elements
    _, offset, size = view[0]
    return tensor(elements, offset, (size,), (1,))


def no_storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
  """The `ReadStorage` of a pickle in which no tensor may be."""
  raise Refused("a tensor where none may be")


def load(program: bytes, read_storage: ReadStorage = no_storage) -> Any:
  """The value that a pickle builds.

  Args:
    program: the pickle; what follows its end is ignored.
    read_storage: reads the elements of a storage.

  Raises:
    Refused: it asks for something other than data.
    Exception: it is broken; pickle raises nearly anything.
  """
  end(program)
  return _Unpickler(program, read_storage).load()


def end(content: bytes, start: int = 0) -> int:
  """The position behind the pickle that starts at a position. Executes nothing.

  Raises:
    Refused: it numbers its objects beyond its length: the unpickler would make a table of that many.
    ValueError: it is broken.
  """
  file = io.BytesIO(content)
  file.seek(start)
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
      raise Refused("a pickle that numbers more objects than it has")
  return file.tell()
