"""A user's own network, by its import path: `custom:package.module:Class`."""

from collections.abc import Callable
import functools
import hashlib
import importlib
import inspect
from pathlib import Path
import traceback
from typing import Any

from flax import linen as nn

PREFIX = "custom:"
_OF_FLAX = ("parent", "name")  # fields of every Linen module


def is_custom(name: str) -> bool:
  """Whether a name of a network is an import path."""
  return name.startswith(PREFIX)


def factory(name: str) -> Callable[..., nn.Module]:
  """The factory that an import path names: a Linen class, or a function that returns a Linen module.

  Like the factories of the zoo it takes `num_classes` and its options by keyword, and its module is called with
  `(image, train=, axis_name=)` and returns `Outputs`. Its options are the class's fields, or the function's arguments,
  that have a default.

  Raises:
    ValueError: there is nothing of this name, or it is no factory.
  """
  made = _imported(name)
  options = {}
  for option in inspect.signature(made).parameters.values():
    if option.name == "num_classes" or option.name in _OF_FLAX:
      continue
    if option.default is option.empty:
      raise ValueError(
        f"{name}: {option.name!r} has no default; give it one, so that a config may leave it out"
      )
    options[option.name] = option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
  if "num_classes" not in inspect.signature(made).parameters:
    raise ValueError(f"{name}: takes no num_classes, the number of classes of the data")

  def make(*, num_classes: int, **given: Any) -> nn.Module:
    try:
      network = made(num_classes=num_classes, **given)
    except TypeError as error:
      raise ValueError(f"{name}: {error}") from error
    if not isinstance(network, nn.Module):
      raise ValueError(f"{name}: makes a {type(network).__name__}, not a flax.linen.Module")
    return network

  num_classes = inspect.Parameter("num_classes", inspect.Parameter.KEYWORD_ONLY)
  functools.update_wrapper(make, made, assigned=("__doc__",), updated=())
  vars(make)["__signature__"] = inspect.Signature([num_classes, *options.values()])
  return make


def code_digest(name: str) -> str:
  """A fingerprint of the file that a network is written in: what it computes changes with it."""
  source = inspect.getsourcefile(_imported(name))
  return "" if source is None else hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def _imported(name: str) -> Any:
  module_name, _, attribute = name.removeprefix(PREFIX).partition(":")
  if not module_name or not attribute:
    raise ValueError(f"{name!r} is not of the form {PREFIX}package.module:Class")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    raise ValueError(f"{name}: cannot import {module_name}: {error}") from error
  except Exception as error:  # the module runs: it may raise anything
    where = traceback.extract_tb(error.__traceback__)[-1]
    told = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    raise ValueError(f"{name}: cannot import {module_name}: {told}") from error
  found = getattr(module, attribute, None)
  if not callable(found):
    raise ValueError(f"{name}: {module_name} has no class {attribute}")
  return found
