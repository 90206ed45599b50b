"""Configs: schema, merging, validation, and construction of objects.

The names below are for config files. Each is imported when first used: importing this package must not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from smskd_jax.config.builders import experiment, method, network, parse_arg, plugin, resolve, stage
  from smskd_jax.config.study_schema import study

__all__ = ["experiment", "method", "network", "parse_arg", "plugin", "resolve", "stage", "study"]

if not TYPE_CHECKING:  # a type checker would accept every name

  def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
      raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "study_schema" if name == "study" else "builders"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
