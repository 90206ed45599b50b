"""Loading of config files; mistakes are reported by file, line and message."""

from collections.abc import Mapping, Sequence
import inspect
from pathlib import Path
import re
import sys
import traceback
import types
from typing import Any

from ml_collections import ConfigDict

from smskd_jax.config import merge
from smskd_jax.errors import UserError

_MODULE = "config_config"  # under which the file is known while it runs: classes of it may be looked up
_PACKAGE = str(Path(__file__).parent)


def load(text: str) -> ConfigDict:
  """Runs a config file and returns the result of its `get_config`.

  Args:
    text: FILE, or FILE:ARGUMENTS, which `get_config` is called with.

  Raises:
    UserError: there is no such file, it has a mistake, or it returns no config.
  """
  path, colon, argument = text.partition(":")
  if not Path(path).is_file():
    raise UserError(f"--config: there is no file {path}")
  module = types.ModuleType(_MODULE)
  module.__file__ = path
  sys.modules[_MODULE] = module
  try:
    exec(compile(Path(path).read_bytes(), path, "exec"), vars(module))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
      raise UserError(f"--config: {path} has no function get_config; add one that returns experiment(...)")
    if colon and not inspect.signature(get_config).parameters:
      raise UserError(f"--config: {path} takes no arguments; leave out {text.removeprefix(path)!r}")
    config = get_config(*[argument] * bool(colon))
  except Exception as error:
    raise _mistake(path, error) from error
  if not isinstance(config, ConfigDict | Mapping):
    raise UserError(
      f"--config: get_config of {path} returns {_brief(repr(config))}; it has to return experiment(...) or study(...)"
    )
  config = config if isinstance(config, ConfigDict) else ConfigDict(config)
  return config.lock()


def check_overrides(config: ConfigDict, arguments: Sequence[str]) -> None:
  """Checks that every argument `--config.PATH` of a command line names a field of the config.

  Raises:
    UserError: names the argument and the nearest field.
  """
  for argument in arguments:
    found = re.match(r"--?(?:no)?config\.([^=]*)", argument)
    if found:
      try:
        merge.find_field(config, found[1])
      except UserError as error:
        raise UserError(f"{found[0]}: {error}") from error


def _mistake(path: str, error: Exception) -> UserError:
  """One-line error for an exception of a config file: line of the file and message."""
  if isinstance(error, UserError) and str(error).startswith(("--config", "config argument")):
    return error  # a mistake of the command line, not of the file
  if isinstance(error, SyntaxError) and error.filename == path:
    return UserError(f"{path}:{error.lineno}: {type(error).__name__}: {error.msg}")
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == path]
  where = f"{path}:{lines[-1]}" if lines else path
  if isinstance(error, UserError):
    return UserError(f"{where}: {error}")
  last = frames[-1]
  inside = "" if last.filename == path or last.filename.startswith(_PACKAGE) else _inside(last)
  return UserError(f"{where}: {type(error).__name__}: {_brief(str(error))}{inside}")


def _inside(frame: Any) -> str:
  return f" (raised in {frame.filename}:{frame.lineno})"


def _brief(text: str) -> str:
  text = " ".join(text.split())
  return text if len(text) <= 200 else f"{text[:197]}..."
