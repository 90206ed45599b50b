"""State that a stage takes over from the previous stage of its network, beside the network's variables. Pure.

Three choices, the field `carry_over` of a stage:

variables   the network's variables alone; optimiser and methods start anew (the SMSKD paper leaves this open)
optimizer   the optimiser's state of the network's parameters too: momentum, second moments, counts of updates
all         everything: the stage continues the previous one, and both together are one longer stage, bit for bit

The position in a learning-rate schedule is never carried by `optimizer`: a schedule over several stages has it in its
own fields (`schedule.start_epoch`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from smskd_jax.types import TrainState

VARIABLES, OPTIMIZER, ALL = "variables", "optimizer", "all"
MODES = (VARIABLES, OPTIMIZER, ALL)


def flatten_opt_state(opt_state: Any) -> dict[str, np.ndarray]:
  """Arrays of an optimiser's state by their paths in it, on the host."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(opt_state))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def apply_carry_over(
  state: TrainState, mode: str, saved: Mapping[str, np.ndarray], methods: tuple[Any, Any] | None = None
) -> TrainState:
  """The first state of a stage, with what it takes over from the previous one in place.

  Args:
    state: the stage's first state as it would be without; its network's variables are the previous stage's already.
    how: one of `CHOICES`.
    saved: of the previous stage's last state, as `to_arrays` gives it.
    methods: for `all`, the previous stage's `params['aux']` and `method_state`.

  Raises:
    KeyError: the optimisers of the two stages are not alike.
  """
  if mode == VARIABLES:
    return state
  opt_state = _merge(state.opt_state, saved, everything=mode == ALL)
  if mode == OPTIMIZER:
    return state._replace(opt_state=opt_state)
  assert methods is not None
  params, method_state = methods
  return state._replace(
    params=state.params | {"methods": params}, method_state=method_state, opt_state=opt_state
  )


def _merge(fresh: Any, saved: Mapping[str, np.ndarray], *, everything: bool) -> Any:
  """The fresh state with saved arrays in place: all, or those that are not of methods, reference or schedule."""

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState) and not everything

  def choose(path: tuple[Any, ...], node: Any) -> Any:
    if is_schedule(node) or not everything and _param_group(path) in ("methods", "reference"):
      return node
    return saved[jax.tree_util.keystr(path)]

  return jax.tree_util.tree_map_with_path(choose, fresh, is_leaf=is_schedule)


def _param_group(path: tuple[Any, ...]) -> str | None:
  """The part of `TrainState.params` that an optimiser's array is of; None for one that is of no parameter."""
  return next((entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)), None)
