"""Mistakes of the user, which end in one clear line instead of a traceback. Imports nothing of ours."""

from collections.abc import Iterable
import difflib
import sys

_MAX_LIST_LENGTH = 160  # characters of a list of known names


class UserError(ValueError):
  """A mistake that the user can mend: the message names the field, the value and the fix."""


def unknown_name_error(field: str, value: object, known: Iterable[object]) -> UserError:
  """The error for a name that no table holds: suggests the nearest and lists the known ones, as far as a line takes."""
  names = [str(name) for name in known]
  return UserError(
    f"{field}: unknown {short_repr(value)}{suggestion(value, names)} (known: {join_names(names)})"
  )


def suggestion(value: object, names: Iterable[object]) -> str:
  """'; did you mean NAME?', or '' where no name is like the value."""
  found = difflib.get_close_matches(str(value), [str(name) for name in names], n=1)
  return f"; did you mean {found[0]!r}?" if found else ""


def short_repr(value: object) -> str:
  """The value as Python writes it, its middle left out where it is long."""
  text = repr(value)
  return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def check_encoding(arguments: Iterable[str]) -> None:
  """Refuses arguments that are no text in the encoding of this process, which none of its files could name.

  Raises:
    UserError: the first of them.
  """
  for argument in arguments:
    if any("\ud800" <= character <= "\udfff" for character in argument):
      raise UserError(
        f"{argument!a} is no text in this process's encoding, {sys.getfilesystemencoding()}; set PYTHONUTF8=1, or use "
        "ASCII"
      )


def print_error(error: UserError, who: str = "") -> int:
  """Prints a mistake as one line on stderr; returns the exit status.

  Args:
    error: the mistake.
    who: the process of several that found it, 'process 1: '.
  """
  print(f"error: {who}{' '.join(str(error).split())}", file=sys.stderr)
  return 2


def join_names(known: Iterable[object]) -> str:
  """Names joined by commas, as far as a line takes."""
  names = [str(name) for name in known]
  text = ", ".join(names)
  if len(text) <= _MAX_LIST_LENGTH:
    return text
  return f"{text[:_MAX_LIST_LENGTH].rpartition(', ')[0]}, ... {len(names)} in all"
