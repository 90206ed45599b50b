"""Registry of the distillation methods and of their plug-ins.

A method is one module of this folder with a function `method` (hyper-parameters by keyword) and one row of `_MODULES`;
a plug-in takes a method and returns a method.
"""

from collections.abc import Callable, Mapping
import itertools
import types
from typing import Any

from smskd_jax import custom
from smskd_jax.losses import (
  ab,
  afd,
  at,
  catkd,
  cc,
  crd,
  crd_infonce,
  ctkd,
  dist,
  dkd,
  dml,
  embedding_mse,
  fitnet,
  fsp,
  ft,
  hard_label,
  ickd,
  irg,
  kd,
  kdsvd,
  logit_standardization,
  logits_cosine,
  logits_mse,
  mlkd,
  multi_teacher,
  nkd,
  nst,
  ofd,
  pkd,
  pkt,
  reviewkd,
  rkd,
  sfd,
  simkd,
  sp,
  srrl,
  tfkd,
  ttm,
  uda,
  vid,
  wsld,
  wttm,
)
from smskd_jax.losses.contract import Context as Context
from smskd_jax.losses.contract import Method as Method
from smskd_jax.losses.contract import check
from smskd_jax.losses.contract import make as make
from smskd_jax.losses.contract import stateless as stateless

_MODULES: Mapping[str, tuple[types.ModuleType, ...]] = {
  "response": (kd, dkd, dist, nkd, mlkd, ttm, wttm, wsld, logits_mse, logits_cosine, hard_label, tfkd, uda),
  "feature": (
    fitnet, at, nst, ab, ft, fsp, vid, ofd, reviewkd, kdsvd, sfd, pkd, simkd, catkd, srrl, afd, embedding_mse,
  ),
  "relation": (rkd, sp, cc, pkt, crd, crd_infonce, irg, ickd),
  "online": (dml,),
}  # fmt: skip
_PLUGINS = (ctkd, multi_teacher, logit_standardization)


def _name(module: types.ModuleType) -> str:
  return module.__name__.rpartition(".")[2]


def _factories(*modules: types.ModuleType) -> Mapping[str, Callable[..., Method]]:
  """Name of each module to its factory."""
  return types.MappingProxyType({_name(m): m.method for m in sorted(modules, key=_name)})


# Family -> its methods.
FAMILIES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
  {family: tuple(map(_name, modules)) for family, modules in _MODULES.items()}
)
# Every factory takes the method's hyper-parameters by keyword and raises ValueError on a bad one.
METHODS = _factories(*itertools.chain.from_iterable(_MODULES.values()))
# Every factory takes a method, and hyper-parameters by keyword, and returns a method.
PLUGINS = _factories(*_PLUGINS)

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
