"""PyTorch checkpoints read without PyTorch, by a reader that can build nothing but tensors.

Both formats of `torch.save` are read:

  since PyTorch 1.6   an uncompressed zip archive: `data.pkl` is a pickle in which every storage is a reference to a
                      member `data/N`
  before              pickles one after another (magic number, protocol, system, the value, the keys of the storages),
                      then the storages in the order of their keys, each with its number of elements

The pickles are read by `torch_pickle`, which executes nothing.
"""

from collections.abc import Mapping
from pathlib import Path
import struct
from typing import Any
import zipfile

import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.exchange import torch_pickle
from smskd_jax.exchange.torch_pickle import Refused

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6
# Under one of these training scripts put the weights.
_KEYS = ("model", "state_dict", "model_state_dict", "net", "net_state_dict", "network", "weights")


def read(path: Path) -> Any:
  """The value that `torch.save` has saved, with read-only arrays for tensors.

  Raises:
    UserError: there is no such file, it is broken, or it holds more than data.
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
  except Refused as error:
    raise UserError(f"{path}: refused: {error}") from error
  except UserError:
    raise
  except (
    Exception
  ) as error:  # a broken pickle or archive makes pickle, zipfile and NumPy raise nearly anything
    first = str(error).partition("\n")[0]
    raise UserError(
      f"{path}: broken or not a PyTorch checkpoint ({type(error).__name__}: {first})"
    ) from error


def _read_zip(path: Path) -> Any:
  """The value in a zip archive. All that is read of it together is no larger than the file."""
  left, storages = path.stat().st_size, dict[str, np.ndarray]()
  with zipfile.ZipFile(path) as archive:
    roots = [name.rpartition("/")[0] for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
      raise UserError(f"{path}: a zip archive, but not one that torch.save has written")

    def member(name: str) -> bytes:
      nonlocal left
      info = archive.getinfo(f"{roots[0]}/{name}")
      if info.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"its member {name} is compressed, which torch.save never does")
      left -= info.file_size
      if left < 0:
        raise Refused("its members are larger than the file")
      return archive.read(info)

    def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
      if key not in storages:
        storages[key] = np.frombuffer(member(f"data/{key}"), np.uint8)
      elements = _elements(storages[key], dtype)
      if elements.size < count:
        raise Refused("a tensor larger than its data")
      return elements

    return torch_pickle.load(member("data.pkl"), storage)


def _read_legacy(content: bytes) -> Any:
  """The value in a file of before PyTorch 1.6."""
  starts = [0]
  for _ in range(5):
    starts.append(torch_pickle.end(content, starts[-1]))
    if len(starts) == 2 and torch_pickle.load(content[: starts[1]]) != _MAGIC:
      raise ValueError("a pickle, but not one that torch.save has written")
  _, protocol, system, program, keys = (content[start : starts[i + 1]] for i, start in enumerate(starts[:-1]))
  if torch_pickle.load(protocol) != _PROTOCOL or not torch_pickle.load(system)["little_endian"]:
    raise ValueError("of an unknown protocol or of a big-endian machine")
  storages, left = dict[str, np.ndarray](), len(content)

  def storage(dtype: np.dtype, key: str, count: int) -> np.ndarray:
    nonlocal left
    if key not in storages:
      left -= count * dtype.itemsize
      if left < 0:
        raise Refused("its tensors are larger than the file")
      storages[key] = np.empty(count, dtype)  # is filled below: the storages follow the pickle
    if (storages[key].dtype, storages[key].size) != (dtype, count):
      raise Refused("a tensor of two types or sizes")
    return storages[key]

  value = torch_pickle.load(program, storage)
  _fill(storages, torch_pickle.load(keys), content, starts[-1])
  return value


def _fill(storages: Mapping[str, np.ndarray], keys: list[str], content: bytes, start: int) -> None:
  """Reads the storages of an old file, which begin at a position, in the order of their keys."""
  if set(storages) - set(keys):
    raise Refused("a tensor without its data")
  for key in keys:
    (count,) = struct.unpack_from("<q", content, start)
    if key not in storages or count != storages[key].size:
      raise Refused("data of another size than its tensor's")
    size = storages[key].nbytes
    stored = np.frombuffer(content, np.uint8, size, start + 8)
    storages[key][:] = _elements(stored, storages[key].dtype)
    start += 8 + size


def _elements(stored: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Little-endian bytes [n * itemsize] as elements [n]."""
  whole = stored[: stored.size // dtype.itemsize * dtype.itemsize]
  return whole.view(dtype.newbyteorder("<")).astype(dtype, copy=False)


def state_dict(content: Any, source: Path) -> dict[str, np.ndarray]:
  """The weights in what `read` has returned: itself, or the value of one of the keys that training scripts use.

  Raises:
    UserError: there are none.
  """
  candidates = [content]
  if isinstance(content, Mapping):
    candidates += [content[name] for name in _KEYS if name in content]
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
    f"{source}: holds no state_dict, neither by itself nor under {', '.join(_KEYS[:-1])} or {_KEYS[-1]}; {found}"
  )
