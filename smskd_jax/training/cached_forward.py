"""What frozen networks say of views that there are finitely many of: computed once, and looked up in the step. Pure.

A frozen network is a function of the view. Where each image has V views (162 for crops padded by 4 and mirrored), V
forward passes of it over the images are all that any number of epochs, stages, seeds and students will ever need.
"""

from collections.abc import Callable
from typing import Any, cast

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.data.enumerable_views import EnumerableView
from smskd_jax.types import CachedOutputs, Outputs


def make_cached_forward(
  network: nn.Module, views: EnumerableView, normalize: Callable[[jax.Array], jax.Array], dtype: Any
) -> Callable[[Any, tuple[jax.Array, ...]], tuple[jax.Array, jax.Array]]:
  """The pure function (variables, (images as stored, index, number of the view)) -> (logits [b, k], pooled [b, d])."""

  def say(variables, shown):
    said = cast(Outputs, network.apply(variables, normalize(views.render(*shown))))
    return said.logits.astype(dtype), said.embedding.astype(dtype)

  return say


def lookup_outputs(cached: CachedOutputs, index: jax.Array, view_index: jax.Array) -> Outputs:
  """What a network says of views, without running it: in float32, with no maps, and no embedding if none is kept.

  Args:
    kept: its answers.
    index: [b], of the images in the training set.
    number: [b], which of its views each is seen in.
  """
  row = cached.row_index[index]
  found = lambda answers: answers[row, view_index].astype(jnp.float32)
  logits = found(cached.logits)
  pooled = jnp.zeros((len(index), 0)) if cached.embedding is None else found(cached.embedding)
  return Outputs(logits, pooled, (), ())


def lookup_spec(outputs: Outputs, embeddings: bool) -> Outputs:
  """The shapes that `look_up` returns, from those of the network's outputs."""
  b, d = outputs.embedding.shape
  of_floats = lambda *shape: cast(jax.Array, jax.ShapeDtypeStruct(shape, jnp.float32))
  return Outputs(of_floats(*outputs.logits.shape), of_floats(b, d if embeddings else 0), (), ())
