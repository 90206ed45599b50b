"""Files as `torch.save` writes them, written without PyTorch."""

import contextlib
import io
import pickle
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
  def __init__(self, kind, key, array):
    self.reference = ("storage", kind, key, "cpu", array.size)


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
  data = {}

  def saved(value):
    if isinstance(value, dict):
      return {key: saved(child) for key, child in value.items()}
    if not isinstance(value, np.ndarray):
      return value
    key = str(len(data))
    data[key] = np.ascontiguousarray(value).tobytes()
    kind = _global("torch", STORAGES[value.dtype.name])
    strides = tuple(step // value.itemsize for step in value.copy("C").strides)
    offset, size, stride = (tensor or (lambda x: (0, x.shape, strides)))(value)
    rebuild = _global("torch._utils", "_rebuild_tensor_v2")
    return _Rebuilt(rebuild, _Storage(kind, key, value), offset, size, stride, False, {})

  with _fake_torch():
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(saved(content))
  write_archive(path, buffer.getvalue(), data)


def write_archive(path, program, data):
  """The zip archive of a pickle and the bytes of its tensors."""
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", program)
    archive.writestr("archive/version", "3\n")
    for key, content in data.items():
      archive.writestr(f"archive/data/{key}", content)
