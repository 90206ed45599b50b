"""The distillation methods and what may be wrapped around them: names to factories."""

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
  crd_in_batch,
  ctkd,
  dist,
  dkd,
  dml,
  embedding_mse,
  every_teacher,
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
from smskd_jax.losses.method import Method

_MODULES: Mapping[str, tuple[types.ModuleType, ...]] = {
  "response": (kd, dkd, dist, nkd, mlkd, ttm, wttm, wsld, logits_mse, logits_cosine, hard_label, tfkd, uda),
  "feature": (
    fitnet, at, nst, ab, ft, fsp, vid, ofd, reviewkd, kdsvd, sfd, pkd, simkd, catkd, srrl, afd, embedding_mse,
  ),
  "relation": (rkd, sp, cc, pkt, crd, crd_in_batch, irg, ickd),
  "online": (dml,),
}  # fmt: skip
_PLUGINS = (ctkd, every_teacher, logit_standardization)


def _name(module: types.ModuleType) -> str:
  return module.__name__.rpartition(".")[2]


def _factories(*modules: types.ModuleType) -> Mapping[str, Callable[..., Method]]:
  """A method is called like its module."""
  return types.MappingProxyType({_name(m): m.method for m in sorted(modules, key=_name)})


# Family -> its methods.
FAMILIES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
  {family: tuple(map(_name, modules)) for family, modules in _MODULES.items()}
)
# Every factory takes the method's hyper-parameters by keyword and raises ValueError on a bad one.
METHODS = _factories(*itertools.chain.from_iterable(_MODULES.values()))
# Every factory takes a method, and hyper-parameters by keyword, and returns a method.
PLUGINS = _factories(*_PLUGINS)
# The plug-ins that change what a method sees of the logits, and so are for response methods alone.
OF_LOGITS = frozenset({"ctkd", "logit_standardization"})
# The methods that teach without a teacher; if a stage has some, these do not read them.
WITHOUT_TEACHER = frozenset({"dml", "tfkd", "uda"})
# The methods that compare views of an image with each other, and so are for stages of two or more.
OF_SEVERAL_VIEWS = frozenset({"uda"})
# The methods that read of their teachers nothing but logits, and those that read their pooled embeddings too.
OF_LOGITS_ALONE = frozenset({*FAMILIES["response"], *FAMILIES["online"]})
OF_EMBEDDINGS = frozenset({"cc", "crd", "crd_in_batch", "embedding_mse", "pkt", "rkd"})
# All others read the teachers' maps or classifiers, which are too large to be kept.
READS_MAPS = frozenset(METHODS) - OF_LOGITS_ALONE - OF_EMBEDDINGS
# The methods that remember each training image, and so can say nothing of others.
OF_TRAINING_IMAGES = frozenset({"crd"})
# The methods that read the label of every image, or its place in the training set: not for images without labels.
# A plug-in that reads labels knows what to do where there are none.
READS_LABELS = frozenset({"crd", "crd_in_batch", "dkd", "nkd", "tfkd", "wsld"})
