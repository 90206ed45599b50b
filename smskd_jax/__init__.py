"""Knowledge distillation in JAX: sequences of methods, anchored by a frozen reference.

The names below are for notebooks. Each is imported when it is first used, so that `import smskd_jax` takes no time.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from smskd_jax import losses, models
  from smskd_jax.losses import METHODS, PLUGINS, Method
  from smskd_jax.models import MODELS
  from smskd_jax.training.initialization import init_state, init_variables
  from smskd_jax.training.reference import Reference
  from smskd_jax.training.stage import Stage, Term, student_variables
  from smskd_jax.training.statistics import compute_statistics
  from smskd_jax.training.train_step import make_train_step
  from smskd_jax.types import Batch, Frozen, Outputs, TrainState

__all__ = [
  "Batch",
  "Frozen",
  "METHODS",
  "MODELS",
  "Method",
  "Outputs",
  "PLUGINS",
  "Reference",
  "Stage",
  "Term",
  "TrainState",
  "compute_statistics",
  "init_state",
  "init_variables",
  "losses",
  "make_train_step",
  "models",
  "student_variables",
]

_HOMES = {
  "losses": ("METHODS", "PLUGINS", "Method"),
  "models": ("MODELS",),
  "types": ("Batch", "Frozen", "Outputs", "TrainState"),
  "training.initialization": ("init_state", "init_variables"),
  "training.reference": ("Reference",),
  "training.stage": ("Stage", "Term", "student_variables"),
  "training.statistics": ("compute_statistics",),
  "training.train_step": ("make_train_step",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if sys.argv[:1] == ["-m"]:  # a program of this package is starting: its first import is this one
  from smskd_jax.runtime import signals

  signals.install_handlers()

if not TYPE_CHECKING:  # a type checker would accept every name

  def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME_OF:
      return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
