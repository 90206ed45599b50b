"""Training a part of the learner: its linear classifier alone. Pure."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def head_mask(network: nn.Module, variables: Any, image: Any) -> Any:
  """Which parameters of a network are those of its linear classifier: a tree of bools like `variables["params"]`.

  They are the parameters that the network hands out as `Outputs.head`, found by tracing it.

  Args:
    network: a network.
    variables: its variables, arrays or their shapes.
    image: what it sees, [b, h, w, c], an array or its shape.

  Raises:
    ValueError: it has no linear classifier, or one that is not among its parameters.
  """
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (variables, image))
  rest = {name: tree for name, tree in shapes[0].items() if name != "params"}

  def classifier(params, rest, image):
    return network.apply({"params": params, **rest}, image).head  # type: ignore[union-attr]

  params = shapes[0]["params"]
  jaxpr = jax.make_jaxpr(classifier)(params, rest, shapes[1]).jaxpr
  handed_out = {id(variable) for variable in jaxpr.outvars}
  leaves, structure = jax.tree.flatten(params)
  found = [id(variable) in handed_out for variable in jaxpr.invars[: len(leaves)]]
  if not any(found):
    raise ValueError(
      "trainable: 'head', but this network has no linear classifier among its parameters; use 'all'"
    )
  return jax.tree.unflatten(structure, found)


def apply_mask(mask: Any, tree: Any) -> Any:
  """A tree like the state's parameters with zeros in all of the learner that is not marked."""
  keep = lambda marked, x: x if marked else jnp.zeros_like(x)
  return {**tree, "student": jax.tree.map(keep, mask, tree["student"])}
