"""The contract of a distillation method: a pair of pure functions, as in `optax.GradientTransformation`."""

from collections.abc import Callable
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.state import Aux, Batch, Outputs


class Method(NamedTuple):
  """A distillation method.

  init: (key, learner, teachers, num_examples) -> Aux. `learner` and `teachers` are `Outputs` of shapes, as
    `jax.eval_shape` returns them; raises ValueError if the method is not defined for them.
  apply: (params, state, learner, teachers, batch, key, step, axis_name=None) -> (loss [b], new state). The
    mean of the loss over the global batch is the paper's loss: no outer weight, no cross-entropy. With an
    `axis_name`, b is one device's share and what relates examples to each other spans that axis.
  """

  init: Callable[..., Aux]
  apply: Callable[..., tuple[jax.Array, Any]]


def stateless(
  loss: Callable[[Outputs, tuple[Outputs, ...], Batch, str | None], jax.Array],
  check: Callable[[Outputs, tuple[Outputs, ...]], None] = lambda learner, teachers: None,
) -> Method:
  """A method that neither learns nor remembers.

  Args:
    loss: (learner, teachers, batch, axis_name) -> [b].
    check: (learner, teachers), on shapes; raises ValueError where the method is not defined for the pair.
  """

  def init(key, learner, teachers, num_examples):
    del key, num_examples
    check(learner, teachers)
    return Aux()

  def apply(params, state, learner, teachers, batch, key, step, axis_name=None):
    del params, key, step
    return loss(learner, teachers, batch, axis_name), state

  return Method(init, apply)


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
  """The rows of all devices, [b of the axis, ...]; `x` itself without an axis."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def mean(tree: Any, axis_name: str | None) -> Any:
  """The mean over devices of each array in a tree; the tree itself without an axis.

  The arrays travel as one: each collective costs a rendezvous of all devices.
  """
  if axis_name is None:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  if len({leaf.dtype for leaf in leaves}) != 1:
    return jax.lax.pmean(tree, axis_name)
  flat = jax.lax.pmean(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), axis_name)
  pieces = jnp.split(flat, list(itertools.accumulate(leaf.size for leaf in leaves))[:-1])
  return jax.tree.unflatten(
    structure, [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)]
  )
