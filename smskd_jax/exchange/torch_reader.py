"""Reads PyTorch checkpoints without PyTorch, and without executing any code of the file.

Both formats of `torch.save` are read:

  since PyTorch 1.6   an uncompressed zip archive: `data.pkl` is a pickle in which every storage is a reference to a
                      member `data/N`
  before              pickles one after another (magic number, protocol, system, the value, the keys of the storages),
                      then the storages in the order of their keys, each with its number of elements

A pickle is a program. Every name in a pickle is looked up in `_ALLOWED`, and any other name is refused: the unpickler
builds tensors, numbers, strings and plain containers, and nothing else. Tensors are views of their storages, so that a
small file cannot fill the memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
import io
from pathlib import Path
import pickle
import pickletools
import struct
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from smskd_jax.errors import UserError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6
# Keys under which training scripts save the weights.
_STATE_DICT_KEYS = ("model", "state_dict", "model_state_dict", "net", "net_state_dict", "network", "weights")
_STORAGES: Mapping[str, Any] = {
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
_ReadStorage = Callable[[np.dtype, str, int], np.ndarray]


class UnsafePickleError(pickle.UnpicklingError):
  """The file holds something other than data, or claims more data than it has."""


class _Storage(NamedTuple):
  """The type of a storage, as a pickle names it."""

  dtype: Any


class _AllowedFunction(NamedTuple):
  """A function that a pickle may call.

  Unlike on a plain function, the pickle cannot set attributes.
  """

  call: Callable

  def __call__(self, *args: Any) -> Any:
    """Calls the function."""
    return self.call(*args)


class _Ignored:
  """Placeholder of options and counters that training scripts save beside the weights.

  Stores nothing.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    """Takes anything."""

  def __setstate__(self, state: Any) -> None:
    """Takes anything."""

  def __setitem__(self, key: Any, value: Any) -> None:
    """Takes anything."""


def _rebuild_tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *_: Any) -> np.ndarray:
  """A read-only view of a storage as a tensor; never more elements than the storage has.

  Raises:
    UnsafePickleError: the shape or the strides reach beyond the storage, or elements repeat.
  """
  numbers = (offset, *size, *stride)
  if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
    raise UnsafePickleError("a tensor of impossible shape")
  if 0 in size:
    return np.empty(size, storage.dtype)
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  # Repeated elements (strides of 0) would let a small file fill the memory.
  if last >= storage.size or int(np.prod(size, dtype=object)) > storage.size:
    raise UnsafePickleError("a tensor larger than its data")
  strides = tuple(step * storage.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


# Names in checkpoints of public training scripts that importing does not need.
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
  ("torch._utils", "_rebuild_tensor"): _AllowedFunction(_rebuild_tensor),
  ("torch._utils", "_rebuild_tensor_v2"): _AllowedFunction(_rebuild_tensor),
  ("torch._utils", "_rebuild_parameter"): _AllowedFunction(lambda data, *_: data),
  ("torch", "Size"): tuple,
  **{("torch", name): _Storage(dtype) for name, dtype in _STORAGES.items()},
  **dict.fromkeys(_IGNORED, _Ignored),
}


class _Unpickler(pickle.Unpickler):
  """Builds data and tensors; raises `UnsafePickleError` for anything else in a pickle."""

  def __init__(self, program: bytes, read_storage: _ReadStorage):
    super().__init__(io.BytesIO(program), encoding="utf-8")
    self._read_storage = read_storage

  def find_class(self, module: str, name: str) -> Any:
    """The object that stands for an allowed name."""
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise UnsafePickleError(
        f"it asks for {module}.{name}, which is no tensor; nothing was executed. Save the network's state_dict() alone"
      ) from None

  def persistent_load(self, reference: Any) -> np.ndarray:
    """The elements of a storage [n], or, in old files, of a part of one."""
    kind, storage, key, _, count, *view = reference
    if kind != "storage" or not isinstance(storage, _Storage) or not isinstance(key, str):
      raise UnsafePickleError("a reference to something other than tensors")
    if type(count) is not int or count < 0:
      raise UnsafePickleError("a tensor of impossible shape")
    elements = self._read_storage(np.dtype(storage.dtype), key, count)
    if not view or view[0] is None:
      return elements
    _, offset, size = view[0]
    return _rebuild_tensor(elements, offset, (size,), (1,))


def _refuse_storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
  """A `_ReadStorage` for pickles without tensors."""
  raise UnsafePickleError("a tensor where none may be")


def _unpickle(program: bytes, read_storage: _ReadStorage = _refuse_storage) -> Any:
  """Builds the value of a pickle.

  Args:
    program: the pickle; bytes after its end are ignored.
    read_storage: reads the elements of a storage.

  Raises:
    UnsafePickleError: the pickle names something other than data.
    Exception: the pickle is broken; pickle raises errors of many types.
  """
  _pickle_end(program)
  return _Unpickler(program, read_storage).load()


def _pickle_end(content: bytes, start: int = 0) -> int:
  """The position behind the pickle that begins at `start`; executes nothing.

  Raises:
    UnsafePickleError: the pickle numbers its objects beyond its length; the unpickler would allocate a table for them.
    ValueError: the pickle is broken.
  """
  file = io.BytesIO(content)
  file.seek(start)
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
      raise UnsafePickleError("a pickle that numbers more objects than it has")
  return file.tell()


def read(path: Path) -> Any:
  """Reads the value of a file of `torch.save`; tensors are read-only arrays.

  Raises:
    UserError: the file is absent or broken, or holds more than data.
  """
  if path.is_dir():
    raise UserError(f"{path}: a folder; give the checkpoint's file")
  if not path.is_file():
    raise UserError(f"{path}: there is no such file")
  try:
    if zipfile.is_zipfile(path):
      return _read_zip(path)
    content = path.read_bytes()
    if content[:1] != b"\x80":
      raise UserError(f"{path}: not a PyTorch checkpoint: neither a zip archive nor a pickle")
    return _read_legacy(content)
  except UnsafePickleError as error:
    raise UserError(f"{path}: refused: {error}") from error
  except UserError:
    raise
  except Exception as error:  # pickle, zipfile and NumPy raise errors of many types on broken files
    first = str(error).partition("\n")[0]
    raise UserError(
      f"{path}: broken or not a PyTorch checkpoint ({type(error).__name__}: {first})"
    ) from error


def _read_zip(path: Path) -> Any:
  """Reads a zip archive; the members read together are no larger than the file."""
  left, storages = path.stat().st_size, dict[str, np.ndarray]()
  with zipfile.ZipFile(path) as archive:
    roots = [name.rpartition("/")[0] for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
      raise UserError(f"{path}: a zip archive, but not one that torch.save has written")

    def member(name: str) -> bytes:
      nonlocal left
      info = archive.getinfo(f"{roots[0]}/{name}")
      if info.compress_type != zipfile.ZIP_STORED:
        raise UnsafePickleError(f"its member {name} is compressed, which torch.save never does")
      left -= info.file_size
      if left < 0:
        raise UnsafePickleError("its members are larger than the file")
      return archive.read(info)

    def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
      if key not in storages:
        storages[key] = np.frombuffer(member(f"data/{key}"), np.uint8)
      elements = _elements(storages[key], dtype)
      if elements.size < count:
        raise UnsafePickleError("a tensor larger than its data")
      return elements

    return _unpickle(member("data.pkl"), storage)


def _read_legacy(content: bytes) -> Any:
  """Reads a file of the format before PyTorch 1.6."""
  starts = [0]
  for _ in range(5):
    starts.append(_pickle_end(content, starts[-1]))
    if len(starts) == 2 and _unpickle(content[: starts[1]]) != _MAGIC:
      raise ValueError("a pickle, but not one that torch.save has written")
  _, protocol, system, program, keys = (content[start : starts[i + 1]] for i, start in enumerate(starts[:-1]))
  if _unpickle(protocol) != _PROTOCOL or not _unpickle(system)["little_endian"]:
    raise ValueError("of an unknown protocol or of a big-endian machine")
  storages, left = dict[str, np.ndarray](), len(content)

  def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
    nonlocal left
    if key not in storages:
      left -= count * dtype.itemsize
      if left < 0:
        raise UnsafePickleError("its tensors are larger than the file")
      storages[key] = np.empty(count, dtype)  # is filled below: the storages follow the pickle
    if (storages[key].dtype, storages[key].size) != (dtype, count):
      raise UnsafePickleError("a tensor of two types or sizes")
    return storages[key]

  value = _unpickle(program, storage)
  _fill(storages, _unpickle(keys), content, starts[-1])
  return value


def _fill(storages: Mapping[str, np.ndarray], keys: list[str], content: bytes, start: int) -> None:
  """Reads the storages of an old file, which begin at `start`, in the order of their keys."""
  if set(storages) - set(keys):
    raise UnsafePickleError("a tensor without its data")
  for key in keys:
    (count,) = struct.unpack_from("<q", content, start)
    if key not in storages or count != storages[key].size:
      raise UnsafePickleError("data of another size than its tensor's")
    size = storages[key].nbytes
    stored = np.frombuffer(content, np.uint8, size, start + 8)
    storages[key][:] = _elements(stored, storages[key].dtype)
    start += 8 + size


def _elements(stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Little-endian bytes [n * itemsize] as elements [n]."""
  whole = stored[: stored.size // dtype.itemsize * dtype.itemsize]
  return whole.view(dtype.newbyteorder("<")).astype(dtype, copy=False)


def find_state_dict(content: Any, source: Path) -> dict[str, np.ndarray]:
  """Weights in a value of `read`: the value or an entry under a key of `_STATE_DICT_KEYS`.

  Raises:
    UserError: there are no weights.
  """
  candidates = [content]
  if isinstance(content, Mapping):
    candidates += [content[name] for name in _STATE_DICT_KEYS if name in content]
  for candidate in candidates:
    if (
      isinstance(candidate, Mapping)
      and candidate
      and all(isinstance(x, np.ndarray) for x in candidate.values())
    ):
      return dict(candidate)
  found = type(content).__name__
  if isinstance(content, Mapping):
    found = f"its keys are {', '.join([*map(str, content)][:10])}" if content else "it is empty"
  raise UserError(
    f"{source}: holds no state_dict, neither by itself nor under {', '.join(_STATE_DICT_KEYS[:-1])} or "
    f"{_STATE_DICT_KEYS[-1]}; {found}"
  )
