"""Mistakes of the user, which end in one clear line instead of a traceback. Imports nothing of ours."""

from collections.abc import Iterable
import difflib


class UserError(ValueError):
  """A mistake that the user can mend: the message names the field, the value and the fix."""


def unknown(field: str, value: object, known: Iterable[object]) -> UserError:
  """The error for a name that no table holds: lists the known ones and suggests the nearest."""
  names = [str(name) for name in known]
  nearest = difflib.get_close_matches(str(value), names, n=1)
  hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
  return UserError(f"{field}: unknown {value!r}{hint} (known: {', '.join(names)})")
