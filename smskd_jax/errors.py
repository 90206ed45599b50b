"""User errors, reported in one line instead of a traceback, and checks of options.

Imports nothing of ours.
"""

from collections.abc import Callable, Iterable, Mapping
import difflib
import math
import numbers
import sys
from typing import Any

_MAX_LIST_LENGTH = 160  # characters of a list of known names


# Names of earlier versions -> names of this one: fields, values, methods and flags.
RENAMED = {
  "--only": "--unit",
  "--seeds_at_once": "--parallel_seeds",
  "agreement": "teacher_reference_agreement",
  "average": "ema_decay",
  "central_crop": "center_crop_fraction",
  "crd_in_batch": "crd_infonce",
  "disagreement": "teacher_reference_disagreement",
  "earlier_images": "num_forgetting_images",
  "entropy": "teacher_entropy",
  "every_teacher": "multi_teacher",
  "fresh": "scratch",
  "keep": "max_to_keep",
  "learner": "network",
  "learning_rate_of": "base_batch_size",
  "one_minus_margin": "one_minus_teacher_margin",
  "one_minus_own_tcp": "one_minus_reference_tcp",
  "one_minus_tcp": "one_minus_teacher_tcp",
  "own_tcp": "reference_tcp",
  "random_crop_area": "min_crop_area",
  "select": "keep_checkpoint",
  "shuffled": "shuffled_one_minus_teacher_tcp",
  "start": "init",
  "steps_at_once": "steps_per_call",
  "student_tap": "student_layer",
  "student_taps": "student_layers",
  "tcp": "teacher_tcp",
  "teacher_tap": "teacher_layer",
  "teacher_taps": "teacher_layers",
  "trains": "trainable",
  "views": "num_views",
  "workers": "num_workers",
}


class UserError(ValueError):
  """Mistake of the user; the message names the field, the value and the fix."""


def unknown_name_error(field: str, value: object, known: Iterable[object]) -> UserError:
  """Error for an unknown name: its new name, or the nearest known name."""
  names = [str(name) for name in known]
  if RENAMED.get(str(value)) in names:
    return UserError(f"{field}: {value!r} is now {RENAMED[str(value)]!r}")
  return UserError(
    f"{field}: unknown {short_repr(value)}{suggestion(value, names)} (known: {join_names(names)})"
  )


def suggestion(value: object, names: Iterable[object]) -> str:
  """Text '; did you mean NAME?' for the name nearest to a value; '' if no name is similar."""
  found = difflib.get_close_matches(str(value), [str(name) for name in names], n=1)
  return f"; did you mean {found[0]!r}?" if found else ""


def short_repr(value: object) -> str:
  """`repr` of a value, with the middle left out if longer than 100 characters."""
  text = repr(value)
  return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def check_encoding(arguments: Iterable[str]) -> None:
  """Checks that command-line arguments are valid text in the encoding of this process.

  Raises:
    UserError: the first argument that is not.
  """
  for argument in arguments:
    if any("\ud800" <= character <= "\udfff" for character in argument):
      raise UserError(
        f"{argument!a} is not text in this process's encoding, {sys.getfilesystemencoding()}; set PYTHONUTF8=1, or use "
        "ASCII"
      )


def print_error(error: UserError, who: str = "") -> int:
  """Prints an error as one line on stderr; returns the exit status 2.

  Args:
    error: the error.
    who: prefix that names the process, as 'process 1: '; '' for a single process.
  """
  print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
  return 2


def join_names(known: Iterable[object]) -> str:
  """Names joined by commas, cut at 160 characters."""
  names = [str(name) for name in known]
  text = ", ".join(names)
  if len(text) <= _MAX_LIST_LENGTH:
    return text
  return f"{text[:_MAX_LIST_LENGTH].rpartition(', ')[0]}, ... {len(names)} in all"


def check_positive(owner: str = "", /, **values: float) -> None:
  """Raises ValueError unless every value is a finite number above zero.

  `owner` begins the message.
  """
  _check_each(owner, values, lambda x: _is_finite(x) and x > 0, "a positive number")


def check_non_negative(owner: str = "", /, **values: float) -> None:
  """Raises ValueError unless every value is a finite number of zero or more."""
  _check_each(owner, values, lambda x: _is_finite(x) and x >= 0, "a number >= 0")


def check_unit_interval(owner: str = "", /, **values: float) -> None:
  """Raises ValueError unless every value is a number from 0 to 1."""
  _check_each(owner, values, lambda x: _is_finite(x) and 0 <= x <= 1, "a number from 0 to 1")


def check_decay(owner: str = "", /, **values: float) -> None:
  """Raises ValueError unless every value is a number in [0, 1), as decay rates are."""
  _check_each(owner, values, lambda x: _is_finite(x) and 0 <= x < 1, "a number from 0 to below 1")


def check_integer(owner: str = "", /, **values: int) -> None:
  """Raises ValueError unless every value is an integer."""
  _check_each(owner, values, _is_integer, "an integer")


def check_positive_integer(owner: str = "", /, **values: int) -> None:
  """Raises ValueError unless every value is an integer above zero."""
  _check_each(owner, values, lambda x: _is_integer(x) and x > 0, "a positive integer")


def check_non_negative_integer(owner: str = "", /, **values: int) -> None:
  """Raises ValueError unless every value is an integer of zero or more."""
  _check_each(owner, values, lambda x: _is_integer(x) and x >= 0, "an integer >= 0")


def check_boolean(owner: str = "", /, **values: bool) -> None:
  """Raises ValueError unless every value is True or False."""
  _check_each(owner, values, lambda x: isinstance(x, bool), "True or False")


def check_choice(owner: str, choices: Iterable[object], /, **values: object) -> None:
  """Raises ValueError unless every value is one of the choices."""
  choices = tuple(choices)
  _check_each(owner, values, lambda x: x in choices, f"one of {', '.join(map(str, choices))}")


def _check_each(
  owner: str, values: Mapping[str, Any], is_valid: Callable[[Any], bool], expected: str
) -> None:
  for name, value in values.items():
    if not is_valid(value):
      prefix = f"{owner}: " if owner else ""
      raise ValueError(f"{prefix}{name} must be {expected}, got {value!r}")


def _is_finite(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)
