"""A user's own networks and methods, by import path: `custom:package.module:name`."""

from collections.abc import Callable, Collection, Iterable
import functools
import hashlib
import importlib
import inspect
from pathlib import Path
import traceback
from typing import Any

PREFIX = "custom:"


def is_custom(name: str) -> bool:
  """True if a name is an import path."""
  return name.startswith(PREFIX)


def factory(
  name: str,
  kind: type,
  *,
  required: Collection[str] = (),
  ignored: Collection[str] = (),
  reserved: Collection[str] = (),
  check: Callable[[Any], Any] = lambda built: built,
) -> Callable[..., Any]:
  """Imports a class or a function that builds objects of one kind.

  Args:
    name: the import path.
    kind: type of the objects.
    required: arguments, besides the options, that the callable must take.
    ignored: parameters that are never passed.
    reserved: names that no option may have.
    check: raises ValueError for an object that breaks the contract.

  Returns:
    The factory. Its keyword arguments are the required ones and the options, which are all other parameters.

  Raises:
    ValueError: the object does not exist or is no such factory. The factory raises it too, if the object fails or
      returns another type.
  """
  make = _import_object(name)
  parameters = _parameters(name, make)
  options = [p for p in parameters.values() if p.name not in {*required, *ignored}]
  _check_parameters(name, parameters, options, required, reserved)

  def build(**arguments: Any) -> Any:
    try:
      built = make(**arguments)
      if isinstance(built, kind):
        return check(built)
    except ValueError as error:
      raise ValueError(f"{name}: {first_paragraph(error)}") from error
    except Exception as error:  # a user's own code may raise anything
      raise ValueError(f"{name}: {describe_error(error, name)}") from error
    raise ValueError(f"{name}: returns a {type(built).__name__}, not a {kind.__module__}.{kind.__name__}")

  keyword = inspect.Parameter.KEYWORD_ONLY
  given = [inspect.Parameter(argument, keyword) for argument in required]
  functools.update_wrapper(build, make, assigned=("__doc__",), updated=())
  vars(build)["__signature__"] = inspect.Signature([*given, *(p.replace(kind=keyword) for p in options)])
  return build


def _check_parameters(
  name: str,
  parameters: Collection[str],
  options: Iterable[inspect.Parameter],
  required: Iterable[str],
  reserved: Collection[str],
) -> None:
  """Checks the parameters of a user's callable.

  The callable has to take the required arguments, and its options have to be possible fields of a config.
  """
  for argument in required:
    if argument not in parameters:
      raise ValueError(f"{name}: takes no {argument!r}, which it is given")
  for option in options:
    if option.default is option.empty:
      raise ValueError(
        f"{name}: {option.name!r} has no default; give it one, so that a config may leave it out"
      )
    if option.name in reserved:
      raise ValueError(f"{name}: {option.name!r} is a field of every such entry; rename the option")


def code_digest(name: str) -> str:
  """Fingerprint of the file that the object is written in, '' if it has no file."""
  source = _source_file(name)
  return "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def first_paragraph(error: Exception) -> str:
  """First paragraph of an error's message, on one line."""
  return " ".join(str(error).split("\n\n")[0].split())


def describe_error(error: Exception, name: str = "") -> str:
  """Type, message and line of an error, if possible in the file of the named object."""
  frames = traceback.extract_tb(error.__traceback__)
  source = _source_file(name) if name else None
  where = next((frame for frame in reversed(frames) if frame.filename == source), frames[-1])
  return f"{type(error).__name__}: {first_paragraph(error)} ({where.filename}:{where.lineno})"


def _parameters(name: str, make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  try:
    parameters = inspect.signature(make).parameters
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: its arguments cannot be found; write a function") from error
  variadic = (
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
    inspect.Parameter.POSITIONAL_ONLY,
  )
  for parameter in parameters.values():
    if parameter.kind in variadic:
      raise ValueError(f"{name}: {parameter} is not an argument with a name; name each option")
  return dict(parameters)


def _source_file(name: str) -> str | None:
  """The file of a function or class; of any other object that of the module that has it."""
  imported = inspect.unwrap(_import_object(name))
  is_written = inspect.isfunction(imported) or inspect.isclass(imported)
  module_name = name.removeprefix(PREFIX).partition(":")[0]
  return inspect.getsourcefile(imported if is_written else importlib.import_module(module_name))


def _import_object(name: str) -> Any:
  module_name, _, attribute = name.removeprefix(PREFIX).partition(":")
  if not module_name or not attribute:
    raise ValueError(f"{name!r} is not of the form {PREFIX}package.module:name")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    raise ValueError(f"{name}: cannot import {module_name}: {error}") from error
  except Exception as error:  # the module runs: it may raise anything
    raise ValueError(f"{name}: cannot import {module_name}: {describe_error(error)}") from error
  imported = getattr(module, attribute, None)
  if not callable(imported):
    raise ValueError(f"{name}: {module_name} has no class or function {attribute}")
  return imported
