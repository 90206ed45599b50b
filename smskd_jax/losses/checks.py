"""Validation of hyper-parameters and of pairs of networks, with errors of one line."""

from collections.abc import Collection
import math
import numbers

from smskd_jax.types import Outputs


def _finite(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def integer(method: str, name: str, value: int) -> None:
  """Refuses all but whole numbers."""
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise ValueError(f"{method}: {name} must be an integer, got {value!r}")


def positive(method: str, name: str, value: float) -> None:
  """Refuses all but finite numbers above zero."""
  if not (_finite(value) and value > 0):
    raise ValueError(f"{method}: {name} must be a positive number, got {value!r}")


def non_negative(method: str, name: str, value: float) -> None:
  """Refuses all but finite numbers from zero on, as weights are."""
  if not (_finite(value) and value >= 0):
    raise ValueError(f"{method}: {name} must be a number >= 0, got {value!r}")


def one_teacher(method: str, teachers: tuple[Outputs, ...]) -> Outputs:
  """The teacher, where there is exactly one."""
  if len(teachers) != 1:
    fix = "name it in the stage's teachers" if not teachers else "or wrap it in the plug-in multi_teacher"
    raise ValueError(f"{method}: needs exactly one teacher, got {len(teachers)}; {fix}")
  return teachers[0]


def same_classes(method: str, student: Outputs, teacher: Outputs) -> None:
  """Refuses a pair whose logits cannot be compared."""
  student_classes, teacher_classes = student.logits.shape[-1], teacher.logits.shape[-1]
  if student_classes != teacher_classes:
    raise ValueError(f"{method}: the student has {student_classes} classes, the teacher {teacher_classes}")


def has_tap(method: str, tap: int, who: str, outputs: Outputs) -> None:
  """Refuses a tap that a network does not have; negative ones count from the end."""
  count = len(outputs.features)
  if not -count <= tap < count:
    raise ValueError(
      f"{method}: tap {tap} does not exist, the {who} has {count} feature maps (0 to {count - 1})"
    )


def in_unit_interval(method: str, name: str, value: float) -> None:
  """Refuses all but numbers from 0 to 1."""
  if not (_finite(value) and 0 <= value <= 1):
    raise ValueError(f"{method}: {name} must be a number from 0 to 1, got {value!r}")


def at_least(method: str, name: str, value: int, least: int) -> None:
  """Refuses all but integers from `least` on."""
  integer(method, name, value)
  if value < least:
    raise ValueError(f"{method}: {name} must be at least {least}, got {value!r}")


def flag(method: str, name: str, value: bool) -> None:
  """Refuses all but True and False."""
  if not isinstance(value, bool):
    raise ValueError(f"{method}: {name} must be True or False, got {value!r}")


def one_of(method: str, name: str, value: str, known: Collection[str]) -> None:
  """Refuses all but the known words."""
  if value not in known:
    raise ValueError(f"{method}: {name} must be one of {', '.join(known)}, got {value!r}")


def has(method: str, field: str, who: str, outputs: Outputs) -> None:
  """Refuses a network that leaves out one of the optional fields of its `Outputs`."""
  value = getattr(outputs, field)
  if value is None or (isinstance(value, tuple) and not value):
    raise ValueError(f"{method}: the {who} does not give Outputs.{field}, which this method needs")
