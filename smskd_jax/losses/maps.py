"""Pairs of feature maps of two networks, in one size."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.losses import contract, numerics
from smskd_jax.types import Outputs


def check_layers(method: str, student_layers: tuple[int, ...], teacher_layers: tuple[int, ...]) -> None:
  """Raises ValueError unless both are tuples of equally many integers; empty means all."""
  for name, layers in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
    if not isinstance(layers, tuple):
      raise ValueError(f"{method}: {name} must be a tuple of integers, got {layers!r}")
    for layer in layers:
      errors.check_integer(method, **{name: layer})
  if len(student_layers) != len(teacher_layers):
    raise ValueError(
      f"{method}: student_layers and teacher_layers must have one length, got {student_layers} and {teacher_layers}"
    )


def pair_layers(
  method: str,
  student: Outputs,
  teacher: Outputs,
  student_layers: Sequence[int] = (),
  teacher_layers: Sequence[int] = (),
  *,
  first_layer: int = 1,
  align_last: bool = False,
) -> tuple[tuple[int, int], ...]:
  """Pairs of feature layers (student's, teacher's), shallow first.

  Args:
    method: its name, for errors.
    student: the student.
    teacher: the teacher.
    student_layers: layers, 0 being the stem and -1 the last; empty for all from `first_layer` on that both networks
      have.
    teacher_layers: equally many layers of the teacher.
    first_layer: 1 leaves out the stem, as the public code of most methods does.
    align_last: True leaves out the first layers of the deeper network; False the last ones.

  Raises:
    ValueError: a network does not have a layer, or the networks have none in common.
  """
  if student_layers:
    for who, outputs, layers in (("student", student, student_layers), ("teacher", teacher, teacher_layers)):
      for layer in layers:
        contract.check_layer(method, layer, who, outputs)
    count_s, count_t = len(student.features), len(teacher.features)
    return tuple((s % count_s, t % count_t) for s, t in zip(student_layers, teacher_layers, strict=True))
  student_range, teacher_range = (
    range(first_layer, len(student.features)),
    range(first_layer, len(teacher.features)),
  )
  count = min(len(student_range), len(teacher_range))
  if not count:
    raise ValueError(
      f"{method}: needs feature maps after the stem; the student has {len(student.features)} maps, "
      f"the teacher {len(teacher.features)}"
    )
  if align_last:
    return tuple(zip(student_range[-count:], teacher_range[-count:], strict=True))
  return tuple(zip(student_range[:count], teacher_range[:count], strict=True))


def layer_spots(
  pairs: Sequence[tuple[int, int]], method: Callable[..., contract.Method]
) -> tuple[contract.Spot, ...]:
  """Trait `spots` of a method whose loss is a sum over pairs of layers.

  Args:
    pairs: of layers (student's, teacher's), from 0.
    method: called with `student_layers` and `teacher_layers` of one pair.
  """
  return tuple(contract.Spot(method(student_layers=(s,), teacher_layers=(t,)), s, t) for s, t in pairs)


def single_layer_spot(
  student_layer: int, teacher_layer: int, student: Outputs, teachers: tuple[Outputs, ...]
) -> tuple[contract.Spot, ...]:
  """Trait `spots` of a method that compares one pair of layers; -1 is the last layer."""
  counts = len(student.features), len(teachers[0].features)
  return (contract.Spot(None, student_layer % counts[0], teacher_layer % counts[1]),)


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Averages a map down (or repeats it up) to `size`, as PyTorch's adaptive pooling does.

  Window i of m on an axis of n covers the rows from floor(i n / m) to ceil((i + 1) n / m).

  Args:
    x: [b, h, w, c].
    size: (height, width) of the result.
  """
  for axis, m in ((1, size[0]), (2, size[1])):
    n = x.shape[axis]
    if n == m:
      continue
    if n % m == 0:
      x = jnp.mean(x.reshape(*x.shape[:axis], m, n // m, *x.shape[axis + 1 :]), axis=axis + 1)
    else:
      windows = jnp.asarray(_pooling_weights(n, m), x.dtype)
      x = jnp.moveaxis(jnp.tensordot(x, windows, ((axis,), (1,)), precision="highest"), -1, axis)
  return x


def _pooling_weights(n: int, m: int) -> np.ndarray:
  """[m, n]: the weights of m averages over an axis of n."""
  weights = np.zeros((m, n))
  for i in range(m):
    start, end = i * n // m, -(-(i + 1) * n // m)
    weights[i, start:end] = 1 / (end - start)
  return weights


def common_size(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int]:
  """(height, width) of the smaller of two maps of shapes [b, h, w, c].

  Each axis is compared by itself.
  """
  return min(a[1], b[1]), min(a[2], b[2])


def match_spatial_size(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Averages the larger of two maps to the size of the smaller, along each axis."""
  size = common_size(student.shape, teacher.shape)
  return adaptive_avg_pool(student, size), adaptive_avg_pool(teacher, size)


def match_layers(
  method: str,
  student: Outputs,
  teacher: Outputs,
  student_layers: Sequence[int] = (),
  teacher_layers: Sequence[int] = (),
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """Maps of both networks at the pairs of `pair_layers`, float32 at least, of one size."""
  layers = pair_layers(method, student, teacher, student_layers, teacher_layers)
  wide = numerics.upcast
  matched = [match_spatial_size(wide(student.features[s]), wide(teacher.features[t])) for s, t in layers]
  return tuple(s for s, _ in matched), tuple(t for _, t in matched)
