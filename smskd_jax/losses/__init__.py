"""Registry of the distillation methods and of their plug-ins.

A method is a module of this folder with a function `method`, which takes hyper-parameters by keyword and raises
ValueError on a bad one, and a name in `FAMILIES`. A plug-in's function takes a method too, and returns a method.
"""

from collections.abc import Callable, Iterable, Mapping
import importlib
import itertools
from types import MappingProxyType
from typing import Any

from smskd_jax import custom
from smskd_jax.losses.contract import Context as Context
from smskd_jax.losses.contract import Method as Method
from smskd_jax.losses.contract import check
from smskd_jax.losses.contract import make as make
from smskd_jax.losses.contract import stateless as stateless

# Family -> names of its methods, which are those of their modules.
FAMILIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
  {
    "response": (
      "kd", "dkd", "dist", "nkd", "mlkd", "ttm", "wttm", "wsld", "logits_mse", "logits_cosine", "hard_label", "tfkd",
      "uda", "sdd", "rld", "gdkd", "ldrld", "skd", "pld", "wkd_logit",
    ),
    "feature": (
      "fitnet", "at", "nst", "ab", "ft", "fsp", "vid", "ofd", "reviewkd", "kdsvd", "sfd", "pkd", "simkd", "catkd",
      "srrl", "afd", "embedding_mse", "mgd", "srd", "ofa", "wkd_feature",
    ),
    "relation": ("rkd", "sp", "cc", "pkt", "crd", "crd_infonce", "irg", "ickd", "itrd"),
    "online": ("dml",),
  }
)  # fmt: skip


def _factories(names: Iterable[str]) -> Mapping[str, Callable[..., Method]]:
  """Immutable table, sorted by name, of the factories of methods or plug-ins."""
  return MappingProxyType(
    {name: importlib.import_module(f"{__name__}.{name}").method for name in sorted(names)}
  )


METHODS = _factories(itertools.chain.from_iterable(FAMILIES.values()))
PLUGINS = _factories(("ctkd", "logit_standardization", "multi_teacher", "nd", "sakd"))

# Fields of a method's entry and of a plug-in's entry in a config that are not hyper-parameters.
METHOD_FIELDS = ("name", "weight", "warmup_epochs", "plugins")
PLUGIN_FIELDS = ("name",)


def factory(name: str) -> Callable[..., Method]:
  """Factory of a name of `METHODS`, or of a user's own method, `custom:package.module:name`.

  Raises:
    KeyError: no method has this name.
    ValueError: a user's own method cannot be imported.
  """
  if not custom.is_custom(name):
    return METHODS[name]
  return custom.factory(name, Method, reserved=METHOD_FIELDS, check=check)


def build_method(entry: Mapping[str, Any]) -> Method:
  """Builds the method of a config's entry inside its plug-ins, the first plug-in outermost.

  Raises:
    ValueError: a hyper-parameter has a bad value.
  """
  method = factory(entry["name"])(**_options(entry, METHOD_FIELDS))
  for plugin in reversed(entry["plugins"]):
    method = PLUGINS[plugin["name"]](method, **_options(plugin, PLUGIN_FIELDS))
  return method


def metric_name(name: str) -> str:
  """Short name of a method for metrics; of a custom method its factory's or module's name.

  'total_variation' of 'custom:my_methods:total_variation' and of 'custom:papers.total_variation:method'.
  """
  if not custom.is_custom(name):
    return name
  module, _, attribute = name.removeprefix(custom.PREFIX).partition(":")
  return module.rpartition(".")[2] if attribute == "method" else attribute


def _options(entry: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
  return {name: value for name, value in entry.items() if name not in fields}
