"""PyTorch checkpoints of the model zoo's networks, imported and exported.

The rule that ties the names together: a submodule of a network in `smskd_jax/models/` is named like its
PyTorch counterpart, with `_` for `.` and `__` for `_`. A family that keeps to it needs nothing here. Public code has
other names for some submodules of the same networks: `_SYNONYMS`.
"""

from collections.abc import Collection, Mapping
import re
from typing import Any

from flax import linen as nn
from flax import traverse_util
import numpy as np

from smskd_jax.models import introspection

_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}
# Axes of a PyTorch tensor in terms of ours, by rank, and back: [h, w, in, out] is [out, in, h, w] there, and
# [in, out] is [out, in].
_TO_TORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_FROM_TORCH = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}
# Wrappers put these before every name: DataParallel and torch.compile.
_PREFIX = re.compile(r"^((module|_orig_mod)\.)+")
# Other names of a submodule -> ours, tried where a network has no tensor of a checkpoint's name.
_SYNONYMS = (
  (re.compile(r"^(linear|fc|classifier)\."), ("fc.", "linear.", "classifier.")),
  (re.compile(r"^layer(\d+)\.layer\."), (r"block\1.layer.",)),  # the survey's wide networks
  (re.compile(r"\.(shortcut|downsample)\."), (".downsample.", ".shortcut.")),
)


def _torch_key(path: tuple[str, ...]) -> str:
  """The PyTorch key of ('params', 'layer1_0', 'conv1', 'kernel'): layer1.0.conv1.weight."""
  _, *modules, leaf = path
  names = (module.replace("__", " ").replace("_", ".").replace(" ", "_") for module in modules)
  return ".".join([*names, _LEAVES[leaf]])


def torch_shapes(
  network: nn.Module, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> dict[str, tuple[int, ...]]:
  """The shapes of a network's tensors in PyTorch, by key; computes nothing."""
  return {key: shape for key, (_, shape) in _expected_tensors(network, image_shape).items()}


def _expected_tensors(network, image_shape):
  """Key in PyTorch -> (path of ours, shape in PyTorch)."""
  shapes = traverse_util.flatten_dict(introspection.variable_shapes(network, image_shape))

  def in_torch(shape):
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])

  return {_torch_key(path): (path, in_torch(x.shape)) for path, x in shapes.items()}


def from_torch(
  network: nn.Module, state_dict: Mapping[str, np.ndarray], *, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> dict[str, Any]:
  """The variables of `network` with the weights of a PyTorch checkpoint.

  Args:
    network: of the model zoo.
    state_dict: the checkpoint's tensors, as arrays, under names that `match_names` maps.
    image_shape: [h, w, c] that the network is for; of it only c decides the weights' shapes.

  Returns:
    {'params': ..., 'batch_stats': ...}: NumPy arrays of the checkpoint's dtypes.

  Raises:
    ValueError: names tensors that are missing, unexpected or of another shape.
  """
  expected = _expected_tensors(network, image_shape)
  tensors = match_names(expected, state_dict)
  shapes = {key: shape for key, (_, shape) in expected.items()}
  problems = introspection.shape_mismatches(shapes, {key: tensor.shape for key, tensor in tensors.items()})
  if problems:
    raise ValueError(f"the checkpoint does not fit {type(network).__name__}; {'; '.join(problems)}")
  arrays = {path: tensors[key].transpose(_FROM_TORCH[len(shape)]) for key, (path, shape) in expected.items()}
  return traverse_util.unflatten_dict({path: np.array(array, order="C") for path, array in arrays.items()})


def match_names(expected: Collection[str], state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Renames a checkpoint's tensors to the names that a network expects, where known.

  The prefixes that DataParallel and torch.compile leave are dropped, and `num_batches_tracked`, which nothing reads.
  """
  tensors = {_PREFIX.sub("", key): np.asarray(x) for key, x in state_dict.items()}
  tensors = {key: x for key, x in tensors.items() if not key.endswith("num_batches_tracked")}
  free = set(expected) - set(tensors)
  names = {key: key if key in expected else _match_name(key, free) for key in tensors}
  return {names[key]: x for key, x in tensors.items()}


def _match_name(key: str, free: Collection[str]) -> str:
  """First of a tensor's synonyms that the checkpoint lacks, or else its own name."""
  others = (pattern.sub(name, key) for pattern, names in _SYNONYMS for name in names)
  return next((other for other in others if other in free), key)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """PyTorch state_dict of a network's variables, in NumPy; the inverse of `from_torch`.

  `num_batches_tracked` is left out: PyTorch's `load_state_dict` puts it in where a plain dictionary lacks it.
  """
  arrays = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(variables).items()}
  return {_torch_key(path): np.array(x.transpose(_TO_TORCH[x.ndim]), order="C") for path, x in arrays.items()}
