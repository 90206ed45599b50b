"""Methods of the entries of a config."""

from collections.abc import Callable, Mapping
from typing import Any

from smskd_jax import custom
from smskd_jax.losses import METHODS, PLUGINS, contract

# Fields of a term and of a plug-in that are not hyper-parameters.
TERM_FIELDS = ("name", "weight", "warmup_epochs", "plugins")
PLUGIN_FIELDS = ("name",)


def factory(name: str) -> Callable[..., contract.Method]:
  """Factory of a name of `METHODS`, or of a user's own method, `custom:package.module:name`.

  Raises:
    KeyError: there is no method of this name.
    ValueError: a user's own method cannot be imported.
  """
  if not custom.is_custom(name):
    return METHODS[name]
  return custom.factory(name, contract.Method, reserved=TERM_FIELDS, check=contract.check)


def make_method(entry: Mapping[str, Any]) -> contract.Method:
  """Builds the method of a filled entry, inside its plug-ins, of which the first is the outermost.

  Raises:
    ValueError: a hyper-parameter has a bad value.
  """
  method = factory(entry["name"])(**_options(entry, TERM_FIELDS))
  for plugin in reversed(entry["plugins"]):
    method = PLUGINS[plugin["name"]](method, **_options(plugin, PLUGIN_FIELDS))
  return method


def metric_name(name: str) -> str:
  """Short name of a method, for metrics: of a user's own one that of its factory, or of its file.

  'total_variation' of 'custom:my_methods:total_variation' and of 'custom:papers.total_variation:method'.
  """
  if not custom.is_custom(name):
    return name
  module, _, attribute = name.removeprefix(custom.PREFIX).partition(":")
  return module.rpartition(".")[2] if attribute == "method" else attribute


def _options(entry: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
  return {name: value for name, value in entry.items() if name not in fields}
