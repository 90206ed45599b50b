"""Files as `torch.save` writes them, written without PyTorch."""

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile

import numpy as np

STORAGES = {
  "float64": "DoubleStorage",
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}


def _global(module, name):
  """Something that a pickle refers to by its module and name."""
  home = sys.modules.setdefault(module, types.ModuleType(module))
  if not hasattr(home, name):
    found = types.new_class(name)
    found.__module__, found.__qualname__ = module, name
    setattr(home, name, found)
  return getattr(home, name)


class _Rebuilt:
  """Pickled as a call of a global."""

  def __init__(self, function, *args):
    self._reduced = function, args

  def __reduce__(self):
    return self._reduced


class _Storage:
  def __init__(self, kind, key, array, more):
    self.reference = ("storage", kind, key, "cpu", array.size, *more)


class _Pickler(pickle.Pickler):
  def persistent_id(self, obj):
    return obj.reference if isinstance(obj, _Storage) else None


@contextlib.contextmanager
def _fake_torch():
  kept = {name: sys.modules.pop(name, None) for name in ("torch", "torch._utils")}
  try:
    yield
  finally:
    for name, module in kept.items():
      sys.modules.pop(name, None)
      if module is not None:
        sys.modules[name] = module


def write(path, content, *, tensor=None):
  """Writes nested dictionaries whose arrays become tensors; `tensor(array)` may give another (offset, size, stride)."""
  with _fake_torch():
    program, data = _pickled(content, tensor, "_rebuild_tensor_v2")
  write_archive(path, program, {key: x.tobytes() for key, x in data.items()})


def write_legacy(path, content, *, tensor=None, rebuild="_rebuild_tensor_v2", counts=None):
  """As `write`, in the format of before PyTorch 1.6; `counts` are other numbers of elements by storage."""
  with _fake_torch():
    program, data = _pickled(content, tensor, rebuild, (None,))
  write_legacy_file(path, program, data, counts)


def write_legacy_file(path, program, data, counts=None):
  """The pickles of the older format, and behind them the storages."""
  system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

  def dumped(value):
    return pickle.dumps(value, protocol=2)

  parts = [dumped(0x1950A86A20F9469CFC6C), dumped(1001), dumped(system), program, dumped(list(data))]
  for key, x in data.items():
    parts += [struct.pack("<q", (counts or {}).get(key, x.size)), x.tobytes()]
  path.write_bytes(b"".join(parts))


def _pickled(content, tensor, rebuild, more=()):
  """The pickle of nested dictionaries, and its storages by their keys; `more` ends a storage's reference."""
  data = {}

  def saved(value):
    if isinstance(value, dict):
      return {key: saved(child) for key, child in value.items()}
    if not isinstance(value, np.ndarray):
      return value
    key = str(len(data))
    data[key] = np.ascontiguousarray(value)
    storage = _Storage(_global("torch", STORAGES[value.dtype.name]), key, value, more)
    strides = tuple(step // value.itemsize for step in value.copy("C").strides)
    offset, size, stride = (tensor or (lambda x: (0, x.shape, strides)))(value)
    hooks = () if rebuild == "_rebuild_tensor" else (False, {})
    return _Rebuilt(_global("torch._utils", rebuild), storage, offset, size, stride, *hooks)

  buffer = io.BytesIO()
  _Pickler(buffer, protocol=2).dump(saved(content))
  return buffer.getvalue(), data


def write_archive(path, program, data, compression=zipfile.ZIP_STORED):
  """The zip archive of a pickle and the bytes of its tensors."""
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", program)
    archive.writestr("archive/version", "3\n")
    for key, content in data.items():
      archive.writestr(f"archive/data/{key}", content)
