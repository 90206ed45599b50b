"""State that a stage takes over from the previous stage of its network. Pure.

Modes, of the field `carry_over` of a stage:

variables   the network's variables alone; optimizer and methods start anew (the SMSKD paper leaves this open)
optimizer   also the optimizer's state for the network's parameters: momentum, second moments, counts of updates
all         everything: the stage continues the previous stage, and both equal one longer stage, bit for bit

`optimizer` never carries the position in a learning-rate schedule: a schedule over several stages has the position in
its own fields (`schedule.start_epoch`).
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
  """Arrays of an optimizer's state on the host, by their paths in it."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(opt_state))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def apply_carry_over(
  state: TrainState, mode: str, saved: Mapping[str, np.ndarray], methods: tuple[Any, Any] | None = None
) -> TrainState:
  """Puts what a stage takes over into its first state.

  Args:
    state: the first state of a stage that takes over its network's variables alone.
    mode: one of `MODES`.
    saved: optimizer state at the end of the previous stage, as `flatten_opt_state` returns it.
    methods: for mode 'all', `params['methods']` and `method_state` of the previous stage.

  Raises:
    KeyError: the optimizers of the two stages differ.
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


def _merge(new: Any, saved: Mapping[str, np.ndarray], *, everything: bool) -> Any:
  """The new optimizer state with saved arrays.

  All arrays, or all but those of methods, reference and schedule.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState) and not everything

  def choose(path: tuple[Any, ...], node: Any) -> Any:
    if is_schedule(node) or not everything and _param_group(path) in ("methods", "reference"):
      return node
    return saved[jax.tree_util.keystr(path)]

  return jax.tree_util.tree_map_with_path(choose, new, is_leaf=is_schedule)


def _param_group(path: tuple[Any, ...]) -> str | None:
  """Key of `TrainState.params` that an optimizer's array belongs to, or None."""
  return next((entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)), None)
