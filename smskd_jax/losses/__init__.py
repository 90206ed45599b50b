"""Tables of the distillation methods and of their plug-ins: names to factories."""

from collections.abc import Callable, Mapping
import itertools
import types

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
from smskd_jax.losses.contract import Method
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
