"""Networks cut at their feature layers into functions, by tracing.

A network of n feature layers has n + 2 segments: from the images to the first feature layer, from each feature layer to
the next, from the last to the embedding, and from the embedding to the logits. Batch norm uses its running statistics.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax.extend import core
import jax.numpy as jnp

from smskd_jax.types import SegmentFn


class _Segment(NamedTuple):
  """A part of a network's program."""

  program: core.ClosedJaxpr  # (cut, *variables) -> next cut
  source: jax.ShapeDtypeStruct  # the array that the program reads: the cut in the shape of the network's path
  variable_indices: tuple[int, ...]  # of the leaves of the network's variables that the program reads


def cut(network: nn.Module, variables: Any, image: Any) -> tuple[SegmentFn, ...]:
  """Segments of a network; composed, they compute its logits.

  Args:
    network: the module.
    variables: arrays, constants of every gradient; or shapes if no segment is called.
    image: [b, h, w, c], an array or a shape. Segments take batches of b.

  Returns:
    n + 2 functions of one array, in order.

  Raises:
    ValueError: a feature layer is not on the only path from the images to the next one.
  """
  leaves, structure = jax.tree.flatten(variables)
  shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
  segments = _cut(network, structure, shapes, (image.shape, image.dtype), jnp.result_type(float))

  def make(segment: _Segment) -> SegmentFn:
    used = [leaves[i] for i in segment.variable_indices]
    program = core.jaxpr_as_fun(segment.program)

    def run(x: jax.Array) -> jax.Array:
      (result,) = program(
        x.astype(segment.source.dtype).reshape(segment.source.shape), *jax.lax.stop_gradient(used)
      )
      return result

    return run

  return tuple(map(make, segments))


@functools.lru_cache(maxsize=64)
def _cut(network, structure, shapes, image, widest_float) -> tuple[_Segment, ...]:
  del widest_float  # part of the cache key: dtypes may depend on it
  specs = [jax.ShapeDtypeStruct(*leaf) for leaf in (*shapes, image)]

  def cuts(*inputs):
    outputs = network.apply(jax.tree.unflatten(structure, inputs[:-1]), inputs[-1])
    return (*outputs.features, outputs.embedding, outputs.logits)

  program = jax.make_jaxpr(functools.partial(_inline, jax.make_jaxpr(cuts)(*specs)))(*specs)
  jaxpr = program.jaxpr
  names = [f"feature layer {i}" for i in range(len(jaxpr.outvars) - 2)] + ["the embedding", "the logits"]
  segments, source, origin = list[_Segment](), jaxpr.invars[-1], "the images"
  for name, target in zip(names, jaxpr.outvars, strict=True):
    segments.append(_segment(program, source, target, origin, name))
    source, origin = _before_reshape(jaxpr, target), name
  return tuple(segments)


def _inline(program: core.ClosedJaxpr, *inputs: Any) -> list[Any]:
  """Evaluates a program with the bodies of compiled functions in place of their calls.

  A feature layer may lie inside such a function.
  """
  jaxpr = program.jaxpr
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *inputs), strict=True))

  def read(variable):
    return variable.val if isinstance(variable, core.Literal) else values[variable]

  for equation in jaxpr.eqns:
    if equation.primitive.name in ("jit", "pjit"):
      results = _inline(equation.params["jaxpr"], *map(read, equation.invars))
    else:
      free = _free_variables([equation])
      single = jaxpr.replace(constvars=[], invars=free, outvars=equation.outvars, eqns=[equation])
      results = core.jaxpr_as_fun(core.ClosedJaxpr(single, []))(*map(read, free))
    values.update(zip(equation.outvars, results, strict=True))
  return list(map(read, jaxpr.outvars))


def _free_variables(equations: Sequence[core.JaxprEqn]) -> list[core.Var]:
  """Variables that the equations read and do not compute, each once."""
  computed = {variable for equation in equations for variable in equation.outvars}
  read = [x for equation in equations for x in equation.invars if not isinstance(x, core.Literal)]
  return [variable for variable in dict.fromkeys(read) if variable not in computed]


def _before_reshape(jaxpr: core.Jaxpr, variable: Any) -> Any:
  """Array of which a feature layer is a reshaped copy.

  Example: tokens [b, n, d] of a map [b, h, w, d]. The network continues from the tokens; a reshape can be undone,
  and so the map is on the path too.
  """
  producers = {x: equation for equation in jaxpr.eqns for x in equation.outvars}
  while variable in producers and producers[variable].primitive.name == "reshape":
    variable = producers[variable].invars[0]
  return variable


def _segment(program: core.ClosedJaxpr, source: Any, target: Any, origin: str, name: str) -> _Segment:
  """The equations that compute `target` from `source` and from the network's variables."""
  *leaves, image = program.jaxpr.invars
  needed, equations = {target}, []
  for equation in reversed(program.jaxpr.eqns):
    if needed.intersection(equation.outvars) - {source}:
      equations.append(equation)
      needed.update(x for x in equation.invars if not isinstance(x, core.Literal))
  equations.reverse()
  if source not in needed:
    raise ValueError(f"cannot be cut at {origin}: no path leads from there to {name}")
  if source is not image and image in needed:
    raise ValueError(f"cannot be cut at {origin}: another path leads from the images to {name}")
  used = [i for i, leaf in enumerate(leaves) if leaf in needed]
  constants = {
    x: value for x, value in zip(program.jaxpr.constvars, program.consts, strict=True) if x in needed
  }
  jaxpr = program.jaxpr.replace(
    constvars=list(constants), invars=[source, *(leaves[i] for i in used)], outvars=[target], eqns=equations
  )
  spec = jax.ShapeDtypeStruct(source.aval.shape, source.aval.dtype)
  return _Segment(core.ClosedJaxpr(jaxpr, list(constants.values())), spec, tuple(used))
