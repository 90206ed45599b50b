"""Pairs of feature maps of two networks, in one size."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.losses import checks, numerics
from smskd_jax.types import Outputs


def check_layers(method: str, student_layers: tuple[int, ...], teacher_layers: tuple[int, ...]) -> None:
  """Refuses taps that are not as many integers on both sides; both empty means all stages."""
  for name, taps in (("student_layers", student_layers), ("teacher_layers", teacher_layers)):
    if not isinstance(taps, tuple):
      raise ValueError(f"{method}: {name} must be a tuple of integers, got {taps!r}")
    for tap in taps:
      checks.integer(method, name, tap)
  if len(student_layers) != len(teacher_layers):
    raise ValueError(
      f"{method}: student_layers and teacher_layers must be as many, got {student_layers} and {teacher_layers}"
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
  """The taps (student's, teacher's) that belong together, shallow first.

  Args:
    method: its name, for errors.
    student: the student.
    teacher: the teacher.
    student_layers: taps, 0 being the stem and -1 the last; empty for all from `first` on, as far as both networks go.
    teacher_layers: likewise, as many.
    first: 1 leaves out the stem, as the public code of most methods does.
    from_the_end: where one network has more stages, whether its first ones are left out rather than its last.

  Raises:
    ValueError: a tap that a network does not have, or no stage in common.
  """
  if student_layers:
    for who, outputs, taps in (("student", student, student_layers), ("teacher", teacher, teacher_layers)):
      for tap in taps:
        checks.has_tap(method, tap, who, outputs)
    count_s, count_t = len(student.features), len(teacher.features)
    return tuple((s % count_s, t % count_t) for s, t in zip(student_layers, teacher_layers, strict=True))
  of_student, of_teacher = (
    range(first_layer, len(student.features)),
    range(first_layer, len(teacher.features)),
  )
  count = min(len(of_student), len(of_teacher))
  if not count:
    raise ValueError(
      f"{method}: needs feature maps after the stem; the student has {len(student.features)} maps, "
      f"the teacher {len(teacher.features)}"
    )
  if align_last:
    return tuple(zip(of_student[-count:], of_teacher[-count:], strict=True))
  return tuple(zip(of_student[:count], of_teacher[:count], strict=True))


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """A map averaged down (or repeated up) to `size`, each axis cut into windows as PyTorch's adaptive pooling does.

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
  """(height, width) of the smaller of two maps of shapes [b, h, w, c], on each axis by itself."""
  return min(a[1], b[1]), min(a[2], b[2])


def match_spatial_size(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Averages the larger of two maps down to the size of the smaller one, on each axis by itself."""
  size = common_size(student.shape, teacher.shape)
  return adaptive_avg_pool(student, size), adaptive_avg_pool(teacher, size)


def match_layers(
  method: str,
  student: Outputs,
  teacher: Outputs,
  student_layers: Sequence[int] = (),
  teacher_layers: Sequence[int] = (),
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
  """The student's maps and the teacher's of each of `pair_layers`, in float32 at least and of one size."""
  taps = pair_layers(method, student, teacher, student_layers, teacher_layers)
  wide = numerics.upcast
  of_taps = [match_spatial_size(wide(student.features[s]), wide(teacher.features[t])) for s, t in taps]
  return tuple(s for s, _ in of_taps), tuple(t for _, t in of_taps)
