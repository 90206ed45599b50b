"""The contract of a distillation method: a few pure functions, as in `optax.GradientTransformation`."""

from collections.abc import Callable
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.state import Aux, Batch, Outputs


class Method(NamedTuple):
  """A distillation method; make one with `make` or `stateless`.

  init: (key, learner, teachers, labels) -> Aux. `learner` and `teachers` are `Outputs` of shapes, as
    `jax.eval_shape` returns them; `labels` is [n], int32, of the whole training set, so that what remembers
    examples knows how many there are and which are of one class. Raises ValueError if the method is not defined
    for these networks.
  apply: (params, state, learner, teachers, batch, key, epoch, axis_name=None) -> (loss [b], new state). The
    mean of the loss over the global batch is the paper's loss: no outer weight, no cross-entropy. `epoch`, [],
    float, counts the epochs of the stage so far, with their fraction. With an `axis_name`, b is one device's
    share and what relates examples to each other spans that axis.
  adopt: None, or (the learner's variables, the teachers' `Outputs`) -> the learner's variables before the first step:
    what the learner takes over from its teachers. Of the outputs only what is the same for every image may be read.
  needs_views: whether a stage of several views calls `apply` once for all of them, with the first view's outputs and
    those of the rest in `Outputs.other_views`; otherwise it is called for each, and the mean is taken.
  """

  init: Callable[..., Aux]
  apply: Callable[..., tuple[jax.Array, Any]]
  adopt: Callable[[Any, tuple[Outputs, ...]], Any] | None = None
  needs_views: bool = False


def make(
  init: Callable[..., Aux],
  apply: Callable[..., tuple[jax.Array, Any]],
  adopt: Callable[[Any, tuple[Outputs, ...]], Any] | None = None,
  *,
  needs_views: bool = False,
) -> Method:
  """A method of an `init` and an `apply`; no gradient reaches the teachers.

  A plug-in, which may change what the teachers say by something that learns, stops the gradient before that, and calls
  the `apply` of the method that it wraps with `freeze=False`.
  """

  def apply_frozen(params, state, learner, teachers, batch, key, epoch, axis_name=None, *, freeze=True):
    if freeze:
      teachers = jax.lax.stop_gradient(teachers)
    return apply(params, state, learner, teachers, batch, key, epoch, axis_name)

  return Method(init, apply_frozen, adopt, needs_views)


def stateless(
  loss: Callable[[Outputs, tuple[Outputs, ...], Batch, str | None], jax.Array],
  check: Callable[[Outputs, tuple[Outputs, ...]], None] = lambda learner, teachers: None,
  *,
  needs_views: bool = False,
) -> Method:
  """A method that neither learns nor remembers.

  Args:
    loss: (learner, teachers, batch, axis_name) -> [b].
    check: (learner, teachers), on shapes; raises ValueError where the method is not defined for the pair.
    needs_views: as of `Method`.
  """

  def init(key, learner, teachers, labels):
    del key, labels
    check(learner, teachers)
    return Aux()

  def apply(params, state, learner, teachers, batch, key, epoch, axis_name):
    del params, key, epoch
    return loss(learner, teachers, batch, axis_name), state

  return make(init, apply, needs_views=needs_views)


def map_logits(f: Callable[[jax.Array], jax.Array], networks: tuple[Outputs, ...]) -> tuple[Outputs, ...]:
  """What networks say, with f of the logits in the place of the logits; of their other views too."""

  def of_one(network: Outputs) -> Outputs:
    return network._replace(logits=f(network.logits), other_views=tuple(map(of_one, network.other_views)))

  return tuple(map(of_one, networks))


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
  """The rows of all devices, [b of the axis, ...]; `x` itself without an axis."""
  return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def first_row(b: int, axis_name: str | None) -> jax.Array | int:
  """The place of this device's first example in the global batch, of which it has b."""
  return 0 if axis_name is None else b * jax.lax.axis_index(axis_name)


def mean(tree: Any, axis_name: str | None) -> Any:
  """The mean over devices of each array in a tree; the tree itself without an axis.

  The arrays travel as one: each collective costs a rendezvous of all devices. One device has none to wait for, and
  joining all gradients of a network takes long to compile.
  """
  if axis_name is None:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  if len({leaf.dtype for leaf in leaves}) != 1 or jax.lax.axis_size(axis_name) == 1:
    return jax.lax.pmean(tree, axis_name)
  flat = jax.lax.pmean(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), axis_name)
  pieces = jnp.split(flat, list(itertools.accumulate(leaf.size for leaf in leaves))[:-1])
  return jax.tree.unflatten(
    structure, [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)]
  )
