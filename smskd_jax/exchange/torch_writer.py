"""Files that `torch.load` reads, written without PyTorch.

As `torch.save` does since PyTorch 1.6: an uncompressed zip archive of a pickle, `data.pkl`, and of the bytes of every
tensor. The pickle is written operation by operation, because Python's writer would have to import what it refers to.
"""

from collections.abc import Mapping
import pickle
import struct
from typing import Any
import zipfile

import numpy as np

from smskd_jax import models
from smskd_jax.errors import UserError
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.exchange.torch_pickle import STORAGES
from smskd_jax.models import torch_weights

_STORAGE_OF = {np.dtype(dtype): name for name, dtype in STORAGES.items()}
_ROOT = "archive"


def write(path: Any, content: Mapping[str, Any]) -> None:
  """Writes nested dictionaries, lists, strings and numbers, and arrays as tensors; readable with weights_only=True."""
  tensors: list[np.ndarray] = []
  program = b"".join((pickle.PROTO, b"\x02", _written(content, tensors), pickle.STOP))
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr(f"{_ROOT}/data.pkl", program)
    archive.writestr(f"{_ROOT}/byteorder", "little")
    for i, x in enumerate(tensors):
      archive.writestr(f"{_ROOT}/data/{i}", x.astype(x.dtype.newbyteorder("<")).tobytes())
    archive.writestr(f"{_ROOT}/version", "3\n")


def _written(value: Any, tensors: list[np.ndarray]) -> bytes:
  """The operations that build a value; its tensors' contents are appended to `tensors`."""
  each = lambda items: b"".join(_written(item, tensors) for item in items)
  match value:
    case Mapping():
      items = (part for item in value.items() for part in item)
      return b"".join((pickle.EMPTY_DICT, pickle.MARK, each(items), pickle.SETITEMS))
    case list():
      return b"".join((pickle.EMPTY_LIST, pickle.MARK, each(value), pickle.APPENDS))
    case tuple():
      return b"".join((pickle.MARK, each(value), pickle.TUPLE))
    case str():
      text = value.encode()
      return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    case bool():
      return pickle.NEWTRUE if value else pickle.NEWFALSE
    case int():
      return pickle.BININT + struct.pack("<i", value)
    case float():
      return pickle.BINFLOAT + struct.pack(">d", value)
    case np.ndarray():
      return _written_tensor(value, tensors)
  raise TypeError(f"cannot write a {type(value).__name__}")


def _written_tensor(x: np.ndarray, tensors: list[np.ndarray]) -> bytes:
  """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
  nested = lambda value: _written(value, tensors)
  storage = (
    pickle.MARK,
    nested("storage"),
    _global("torch", _STORAGE_OF[x.dtype]),
    nested(str(len(tensors))),
    nested("cpu"),
    nested(int(x.size)),
    pickle.TUPLE,
    pickle.BINPERSID,
  )
  x = np.ascontiguousarray(x)
  tensors.append(x)
  strides = tuple(step // x.itemsize for step in x.strides)
  hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
  arguments = (*storage, nested(0), nested(tuple(map(int, x.shape))), nested(strides), nested(False), hooks)
  rebuild = _global("torch._utils", "_rebuild_tensor_v2")
  return b"".join((rebuild, pickle.MARK, *arguments, pickle.TUPLE, pickle.REDUCE))


def _global(module: str, name: str) -> bytes:
  return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def write_trained(trained: ExportedNetwork, path: Any) -> None:
  """Writes {'model': state_dict, 'class_names': ..., 'mean': ..., 'std': ...}; nothing normalises but the reader.

  Raises:
    UserError: there is no PyTorch network of this name.
  """
  if trained.model not in models.NETWORKS:
    raise UserError(f"--format: torch: {trained.model!r} has no counterpart in PyTorch; use another format")
  content = {"model": torch_weights.to_torch(trained.variables)}
  write(path, content | {k: list(getattr(trained, k)) for k in ("class_names", "mean", "std")})
