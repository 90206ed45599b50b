"""Merging of config entries with their defaults, conversion and parsing of values."""

from collections.abc import Callable, Collection, Mapping
import inspect
import re
from typing import Any

from ml_collections import ConfigDict

from smskd_jax.errors import RENAMED, UserError, join_names, short_repr, suggestion, unknown_name_error


def drop_keys(entry: Mapping[str, Any], *own: str) -> dict[str, Any]:
  """Fields of an entry without the named ones, as the hyper-parameters of a method."""
  return {name: value for name, value in entry.items() if name not in own}


def merge_entry(
  field: str, template: Mapping[str, Any], values: Any, table: Mapping[str, Callable]
) -> dict[str, Any]:
  """Merges an entry with a template and the keyword arguments of its factory.

  The first field of the template names the factory in the table.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  name_field = next(iter(template))
  values = coerce({}, field, to_plain(values))
  name = values.get(name_field, template[name_field])
  if name not in table:
    raise unknown_name_error(f"{field}.{name_field}", name, table)
  own = {option: value for option, value in default_kwargs(table[name]).items() if option not in template}
  return merge(field, dict(template) | own, values)


def default_kwargs(factory: Callable) -> dict[str, Any]:
  """Keyword arguments of a factory that have a default, with the defaults."""
  parameters = inspect.signature(factory).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def merge(
  field: str, template: Mapping[str, Any], values: Any, *, skip: Collection[str] = ()
) -> dict[str, Any]:
  """Merges values with the defaults of a template, in nested dicts too.

  Fields of `skip` keep their values unchecked.

  Raises:
    UserError: an unknown field, or a value of another type.
  """
  values = coerce({}, field, to_plain(values))
  for name in values:
    if name not in template:
      raise unknown_name_error(field, name, template)
  filled = {}
  for name, default in template.items():
    value = values.get(name, default)
    if name not in skip:
      of = f"{field}.{name}"
      value = merge(of, default, value) if isinstance(default, dict) else coerce(default, of, value)
    filled[name] = value
  return filled


def coerce(default: Any, field: str, value: Any) -> Any:
  """Value in the type of its default; integers are accepted for floats, lists for tuples.

  Raises:
    UserError: the value has another type.
  """
  kind = type(default)
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is tuple and isinstance(value, list | tuple):
    return tuple(value)
  if type(value) is not kind:
    example = default if default or kind not in _EXAMPLES else _EXAMPLES[kind]
    raise UserError(
      f"{field}: {short_repr(value)} is not of type {kind.__name__}; an example is {short_repr(example)}"
    )
  return value


# Of types whose default is empty.
_EXAMPLES: Mapping[type, Any] = {tuple: ("a", "b"), dict: {"name": "value"}, str: "text"}


def find_field(config: Any, path: str) -> tuple[Any, Any]:
  """(ConfigDict that holds a field, name of the field).

  Args:
    config: a config.
    path: the field as the command line names it, 'stages[1].reference.weight'.

  Raises:
    UserError: there is none; names the first part of the path that does not exist.
  """
  if not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*", path):
    raise UserError(f"{path!r} is no path of a field; write it as stages[0].epochs")
  parts = [_parse_part(part) for part in re.split(r"[.\[\]]+", path.removesuffix("]"))]
  holder, walked = config, "config"
  for i, part in enumerate(parts):
    if isinstance(holder, tuple) and isinstance(part, int):
      if not -len(holder) <= part < len(holder):
        raise UserError(f"there is no {walked}[{part}]; {walked} has {len(holder)}, counted from 0")
    elif isinstance(holder, tuple):
      raise UserError(f"{walked} is a tuple of {len(holder)}; name one of its items, as {walked}[0]")
    elif not isinstance(holder, Mapping | ConfigDict):
      raise UserError(f"{walked} is {short_repr(holder)}, which has no {part!r}")
    elif part not in holder:
      if RENAMED.get(str(part)) in holder:
        raise UserError(f"{walked}.{part} is now {walked}.{RENAMED[str(part)]}")
      raise UserError(
        f"{walked} has no field {part!r}{suggestion(part, holder) or f' (it has: {join_names(holder)})'}"
      )
    if i == len(parts) - 1:
      break
    holder, walked = holder[part], f"{walked}[{part}]" if isinstance(part, int) else f"{walked}.{part}"
  if isinstance(holder, tuple):
    raise UserError(
      f"{walked}[{parts[-1]}] cannot be replaced as a whole; change its fields, or all of {walked}"
    )
  return holder, parts[-1]


def _parse_part(part: str) -> str | int:
  """Index or name of a part of a path."""
  return int(part) if re.fullmatch("-?[0-9]+", part) else part


def to_plain(config: Any) -> Any:
  """Converts ConfigDicts to dicts and lists to tuples, recursively."""
  if isinstance(config, ConfigDict | Mapping):
    return {name: to_plain(value) for name, value in config.items()}
  if isinstance(config, list | tuple):
    return tuple(to_plain(value) for value in config)
  return config


def to_config_dict(value: Any) -> Any:
  """Converts dicts to ConfigDicts, in tuples too, for fields like `stages[1].epochs`."""
  if isinstance(value, dict):
    return ConfigDict({name: to_config_dict(child) for name, child in value.items()})
  return tuple(to_config_dict(child) for child in value) if isinstance(value, tuple) else value


def parse_items(prefix: str, text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
  """Parses comma-separated `name=value`, each value in the type of the name's default.

  Raises:
    UserError: an unknown name, or a value of another type.
  """
  values = {}
  for item in filter(None, text.split(",")):
    name, _, value = item.partition("=")
    if name not in defaults:
      raise unknown_name_error(prefix, name, defaults)
    values[name] = parse_value(f"{prefix} {name}", value, type(defaults[name]))
  return values


def format_options(name: str, values: Mapping[str, Any]) -> str:
  """Name and options in the form of the command line: NAME, or NAME:option=value,..."""
  return f"{name}:{','.join(f'{option}={value}' for option, value in values.items())}" if values else name


def parse_value(field: str, text: str, kind: type) -> Any:
  """Parses a string of the command line as a value of a type."""
  if kind is bool and text in ("True", "true", "1", "False", "false", "0"):
    return text in ("True", "true", "1")
  try:
    if kind is not bool:
      return kind(text)
  except ValueError:
    pass
  raise UserError(f"{field}: {short_repr(text)} is not of type {kind.__name__}")
