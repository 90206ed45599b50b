"""Fields of a config: default, description and allowed values, in one place each.

A schema is a dict from the names of fields to `Field`s or to further schemas. Defaults, validation and
`docs/config.md` are derived from it.
"""

from collections.abc import Iterator, Mapping
import math
from typing import Any, NamedTuple

from smskd_jax.errors import UserError, unknown_name_error


class Field(NamedTuple):
  """One field of a config.

  Bounds and choices that are None or empty allow every value of the default's type.
  """

  default: Any
  description: str  # for docs/config.md: meaning and unit; one or two sentences
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()


Schema = Mapping[str, Any]  # name -> Field, or a Schema


def defaults(schema: Schema) -> dict[str, Any]:
  """Default of every field, nested as the schema is."""
  return {
    name: field.default if isinstance(field, Field) else defaults(field) for name, field in schema.items()
  }


def check(path: str, schema: Schema, values: Mapping[str, Any]) -> None:
  """Checks the values of a schema's fields.

  Fields that the schema lacks are left to their own factories.

  Args:
    path: of the values in the config, for messages.
    schema: the fields.
    values: merged with the defaults.

  Raises:
    UserError: the first value that is not allowed.
  """
  for name, field in schema.items():
    if isinstance(field, Field):
      check_field(f"{path}.{name}", field, values[name])
    else:
      check(f"{path}.{name}", field, values[name])


def check_field(path: str, field: Field, value: Any) -> None:
  """Checks one value.

  Raises:
    UserError: the value is out of the field's range, or not one of its choices.
  """
  if field.choices and value not in field.choices:
    raise unknown_name_error(path, value, field.choices)
  too_small = (field.at_least is not None and value < field.at_least) or (
    field.above is not None and value <= field.above
  )
  too_large = (field.at_most is not None and value > field.at_most) or (
    field.below is not None and value >= field.below
  )
  if (too_small or too_large) and _is_interval(field):
    raise UserError(f"{path}: {value} is not in {_interval(field)}")
  if too_small:
    bound = f"at least {field.at_least}" if field.above is None else f"greater than {field.above}"
    raise UserError(f"{path}: {value} is too small; it must be {bound}")
  if too_large:
    raise UserError(f"{path}: {value} is too large; it must be at most {field.at_most}")


def check_finite(path: str, value: Any) -> None:
  """Checks that no number of a nested value is infinite or not a number.

  Raises:
    UserError: the first one, by its path.
  """
  for leaf_path, leaf in _leaves(path, value):
    if isinstance(leaf, float) and not math.isfinite(leaf):
      raise UserError(f"{leaf_path}: {leaf} is not a finite number")


def allowed(field: Field) -> str:
  """Allowed values of a field in words, for the documentation.

  '' if every value of the type is allowed.
  """
  if field.choices:
    return ", ".join(f"`{choice}`" for choice in field.choices)
  if _is_interval(field):
    return _interval(field)
  words = []
  if field.at_least is not None:
    words.append(f">= {field.at_least:g}")
  if field.above is not None:
    words.append(f"> {field.above:g}")
  if field.at_most is not None:
    words.append(f"<= {field.at_most:,}")
  return ", ".join(words)


def _is_interval(field: Field) -> bool:
  """True for fractions, whose interval is clearer than one of its bounds."""
  return field.below is not None or (field.at_most == 1 and field.above is not None)


def _interval(field: Field) -> str:
  low = f"[{field.at_least}" if field.above is None else f"({field.above}"
  high = f"{field.at_most}]" if field.below is None else f"{field.below})"
  return f"{low}, {high}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
  if isinstance(value, dict):
    for name, child in value.items():
      yield from _leaves(f"{path}.{name}", child)
  elif isinstance(value, tuple):
    for i, child in enumerate(value):
      yield from _leaves(f"{path}[{i}]", child)
  else:
    yield path, value
