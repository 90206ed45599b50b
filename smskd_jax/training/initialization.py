"""Initial variables of networks, and the state of a stage before its first step."""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context, Method, init_method
from smskd_jax.training import reference
from smskd_jax.training import statistics as statistics_lib
from smskd_jax.training.stage import (
  Stage,
  frozen_outputs,
  head_mask,
  lookup_spec,
  make_segments,
  output_spec,
)
from smskd_jax.types import Batch, MethodVariables, Outputs, TrainState


def init_variables(network: nn.Module, key: jax.Array, image: Any) -> Any:
  """New variables of a network for images like `image` ([b, h, w, c], an array or a shape)."""
  return _init(network, key, jnp.zeros(image.shape, image.dtype))


# Compiled as a whole, because layer by layer takes seconds; without optimization, because it runs once.
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"})
def _init(network: nn.Module, key: jax.Array, image: jax.Array) -> Any:
  return network.init(key, image)


def init_state(
  stage: Stage,
  key: jax.Array,
  variables: Any,
  teachers: tuple[Any, ...],
  image: Any,
  labels: Any,
  *,
  statistics: tuple[Any, ...] = (),
) -> TrainState:
  """State of a stage before its first step, with new method variables and optimizer state.

  Our reading of SMSKD: state of the methods and of the optimizer does not outlive its stage.

  Args:
    stage: the stage.
    key: random key of the methods' initialization.
    variables: the student's, new or of an earlier stage. Copied.
    teachers: the teachers' variables. Only shapes are read, and the parameters that a method's `init_student` copies.
    image: inputs of the networks, [b, h, w, c], an array or a shape.
    labels: [n], int32, of the whole training set.
    statistics: for methods that need some, as `compute_statistics` returns them: one entry a term.

  Raises:
    ValueError: a method is not defined for these networks, a network cannot be cut into the segments that a method
      reads, the student has no linear classifier to train alone, or a method needs statistics and there are none.
  """
  statistics = reference.copy_variables(statistics_lib.check_given(stage, statistics))
  if stage.trainable == "head":
    head_mask(stage.student, variables, image)  # raises its error before any training
  student_spec = output_spec(stage.student, variables, image)
  teacher_specs = tuple(output_spec(n, v, image) for n, v in zip(stage.teachers, teachers, strict=True))
  methods = [term.method for term in stage.terms]
  if any(method.reads_segments for method in methods):
    make_segments(stage, variables, teachers, image)  # raises its error before any training
  aux: list[MethodVariables] = [
    init_method(method, jax.random.fold_in(key, i), student_spec, teacher_specs, labels, statistics[i])
    for i, method in enumerate(methods)
  ]
  for method in methods:
    if method.init_student is not None:
      constants = tuple(_constant_outputs(n, v, image) for n, v in zip(stage.teachers, teachers, strict=True))
      variables = method.init_student(variables, constants)
  model_state = {name: tree for name, tree in variables.items() if name != "params"}
  params = {"student": variables["params"], "methods": tuple(a.params for a in aux)}
  if weighting_params := reference.init_params(stage.reference):
    params["reference"] = weighting_params
  params, model_state = reference.copy_variables((params, model_state))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    method_state=tuple(a.state for a in aux),
    opt_state=stage.optimizer.init(params),
    ema=reference.copy_variables({"params": params["student"], **model_state}) if stage.ema_decay else (),
  )


class TermError(ValueError):
  """A method that breaks the contract of methods."""


def check_term(
  stage: Stage, index: int, variables: Any, teachers: Sequence[Any], image: Any, labels: Any
) -> None:
  """Traces a term on shapes, as the training step calls it.

  Args:
    stage: the stage.
    index: of the term.
    variables: the student's, arrays or shapes.
    teachers: the teachers' variables, arrays or shapes.
    image: shape of the networks' inputs, [1, h, w, c].
    labels: [n], int32, of the whole training set.

  Raises:
    TermError: `init` does not return `MethodVariables`, or `apply` not a loss [b] and a state like the previous one.
  """
  method = stage.terms[index].method
  b = output_spec(stage.student, variables, image).logits.shape[-1] + 1  # differs from the number of classes
  image = jax.ShapeDtypeStruct((b, *image.shape[1:]), image.dtype)
  networks, values = (stage.student, *stage.teachers), (variables, *teachers)
  student, *outputs = (output_spec(n, v, image) for n, v in zip(networks, values, strict=True))
  term = stage._replace(terms=stage.terms[index : index + 1])
  statistics = statistics_lib.statistics_spec(term, teachers, image, labels) or ((),)

  def init(key, statistics):
    return init_method(method, key, student, tuple(outputs), labels, statistics)

  aux = jax.eval_shape(init, jax.random.key(0), *statistics)
  if not isinstance(aux, MethodVariables):
    raise TermError("init does not return smskd_jax.types.MethodVariables")
  specs = _term_specs(stage, method, (student, *outputs))
  index_spec: Any = jax.ShapeDtypeStruct((b,), jnp.int32)

  def apply(params, state, student, teachers, batch, networks):
    context = Context(batch, jax.random.key(0), jnp.zeros(()))
    if method.reads_segments:
      context = context._replace(segments=make_segments(stage, *networks, batch.image))
    return method.apply(params, state, student, teachers, context)

  batch = Batch(image, index_spec, index_spec)
  results = jax.eval_shape(apply, *aux, specs[0], tuple(specs[1:]), batch, (variables, tuple(teachers)))
  _check_results(results, b, aux.state)


def _term_specs(stage: Stage, method: Method, specs: Sequence[Outputs]) -> list[Outputs]:
  """Shapes of the outputs that a method gets, from caches or of several views."""
  student, *teachers = specs
  if stage.view_index_fn is not None:
    embeddings = any("embedding" in term.method.reads for term in stage.terms)
    teachers = [lookup_spec(outputs, embeddings) for outputs in teachers]
  others = len(stage.views) - 1 if method.multi_view else 0
  return [outputs._replace(view_outputs=(outputs,) * others) for outputs in (student, *teachers)]


def _check_results(results: Any, b: int, method_state: Any) -> None:
  """Checks that `apply` returns a loss [b] and a state like `method_state`, on shapes."""
  if not (isinstance(results, tuple) and len(results) == 2):
    raise TermError("apply does not return a pair of the loss [b] and the new state")
  loss, state = results
  if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape != (b,):
    actual = list(loss.shape) if isinstance(loss, jax.ShapeDtypeStruct) else type(loss).__name__
    raise TermError(f"the loss of {b} images is {actual}, not one number per image, [b] = [{b}]")
  if not jnp.issubdtype(loss.dtype, jnp.floating):
    raise TermError(f"the loss is of type {loss.dtype}, not of floats")
  if jax.tree.map(_shape, state) != jax.tree.map(_shape, method_state):
    raise TermError("apply returns a state whose shapes differ from the previous state")


def _shape(x: Any) -> tuple[Any, Any]:
  return x.shape, x.dtype


@functools.partial(jax.jit, static_argnums=0)
def _head_and_norms(network: nn.Module, variables: Any, image: jax.Array) -> Any:
  outputs = frozen_outputs(network, variables, image)
  return outputs.head, outputs.norms


def _constant_outputs(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """The classifier and the norms, which no image changes; shapes of the other outputs."""
  blank = jnp.zeros((1, *image.shape[1:]), image.dtype)
  head, norms = _head_and_norms(network, variables, blank)
  return output_spec(network, variables, blank)._replace(head=head, norms=norms)
