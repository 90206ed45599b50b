"""What a stage begins with: fresh variables, and the state before the first step."""

from collections.abc import Sequence
import functools
import itertools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context
from smskd_jax.training import cached_forward, trainable
from smskd_jax.training import reference as anchor
from smskd_jax.training.stage import Stage, frozen_outputs
from smskd_jax.types import Batch, MethodVariables, Outputs, TrainState


def init_variables(network: nn.Module, key: jax.Array, image: Any) -> Any:
  """Fresh variables of a network for images like `image` ([b, h, w, c], an array or its shape)."""
  return _init(network, key, jnp.zeros(image.shape, image.dtype))


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"})
def _init(network: nn.Module, key: jax.Array, image: jax.Array) -> Any:
  """Compiled as a whole, because layer by layer takes seconds, and in haste, because it runs once."""
  return network.init(key, image)


def init_state(
  stage: Stage, key: jax.Array, variables: Any, teachers: tuple[Any, ...], image: Any, labels: Any
) -> TrainState:
  """The state before the first step: the learner's variables, fresh auxiliary parameters and optimiser state.

  Our reading of SMSKD: what the methods and the optimiser have gathered does not outlive its stage.

  Args:
    stage: the stage.
    key: random key of the methods' initialisation.
    variables: the learner's, as an earlier stage left them or fresh. Copied.
    teachers: the teachers' variables; only their shapes are read, and what a method's `init_student` takes over.
    image: a batch of what the networks see, [b, h, w, c], an array or its shape.
    labels: [n], int32, of the whole training set.

  Raises:
    ValueError: a method is not defined for these networks, or the learner has no classifier to train alone.
  """
  if stage.trainable == "head":
    trainable.head_mask(stage.student, variables, image)  # or its error, before any training
  learner_spec = output_spec(stage.student, variables, image)
  teacher_specs = tuple(output_spec(n, v, image) for n, v in zip(stage.teachers, teachers, strict=True))
  aux: list[MethodVariables] = [
    term.method.init(jax.random.fold_in(key, i), learner_spec, teacher_specs, labels)
    for i, term in enumerate(stage.terms)
  ]
  for init_student in filter(None, (term.method.init_student for term in stage.terms)):
    variables = init_student(
      variables, tuple(map(_constant_outputs, stage.teachers, teachers, itertools.repeat(image)))
    )
  model_state = {name: tree for name, tree in variables.items() if name != "params"}
  params = {"student": variables["params"], "methods": tuple(a.params for a in aux)}
  if of_anchor := anchor.init_params(stage.reference):
    params["reference"] = of_anchor
  params, model_state = anchor.copy_variables((params, model_state))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    method_state=tuple(a.state for a in aux),
    opt_state=stage.optimizer.init(params),
    ema=anchor.copy_variables({"params": params["student"], **model_state}) if stage.ema_decay else (),
  )


class TermError(ValueError):
  """A method that does not keep to the contract."""


def check_term(
  stage: Stage, index: int, variables: Any, teachers: Sequence[Any], image: Any, labels: Any
) -> None:
  """Traces a term as a step calls it, on shapes.

  Args:
    stage: the stage.
    i: index of the term.
    variables: the learner's, or their shapes.
    teachers: the teachers' variables, or their shapes.
    image: shape of what the networks see, [1, h, w, c].
    labels: [n], int32, of the whole training set.

  Raises:
    TermError: `init` returns no `MethodVariables`, or `apply` not a loss [b] and a state like the one before.
  """
  method = stage.terms[index].method
  learner = output_spec(stage.student, variables, image)
  b = learner.logits.shape[-1] + 1  # no loss of another shape is taken for [b]
  image = jax.ShapeDtypeStruct((b, *image.shape[1:]), image.dtype)
  learner, *of_teachers = (
    output_spec(network, values, image)
    for network, values in zip((stage.student, *stage.teachers), (variables, *teachers), strict=True)
  )
  init = lambda key: method.init(key, learner, tuple(of_teachers), labels)
  aux = jax.eval_shape(init, jax.random.key(0))
  if not isinstance(aux, MethodVariables):
    raise TermError("init returns no smskd_jax.types.MethodVariables")
  if stage.view_index_fn is not None:
    embeddings = any("embedding" in term.method.reads for term in stage.terms)
    of_teachers = [cached_forward.lookup_spec(outputs, embeddings) for outputs in of_teachers]
  if method.multi_view:
    see_all = lambda one: one._replace(view_outputs=(one,) * (len(stage.views) - 1))
    learner, *of_teachers = map(see_all, (learner, *of_teachers))
  number: Any = jax.ShapeDtypeStruct((b,), jnp.int32)

  def apply(params, state, learner, of_teachers, batch):
    return method.apply(params, state, learner, of_teachers, Context(batch, jax.random.key(0), jnp.zeros(())))

  results = jax.eval_shape(apply, *aux, learner, tuple(of_teachers), Batch(image, number, number))
  if not (isinstance(results, tuple) and len(results) == 2):
    raise TermError("apply returns no pair of the loss [b] and the new state")
  loss, state = results
  if not isinstance(loss, jax.ShapeDtypeStruct) or loss.shape != (b,):
    found = list(loss.shape) if isinstance(loss, jax.ShapeDtypeStruct) else type(loss).__name__
    raise TermError(f"the loss of {b} images is {found}, not one number per image, [b] = [{b}]")
  if not jnp.issubdtype(loss.dtype, jnp.floating):
    raise TermError(f"the loss is of type {loss.dtype}, not of floats")
  if jax.tree.map(_shape, state) != jax.tree.map(_shape, aux.state):
    raise TermError("apply returns a state of other shapes than it is given")


def _shape(x: Any) -> tuple[Any, Any]:
  return x.shape, x.dtype


def output_spec(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """Shapes of a network's outputs, without running it. Kept: a study plans the same networks hundreds of times."""
  leaves, structure = jax.tree.flatten(variables)
  shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
  return _output_spec(network, structure, shapes, (image.shape, image.dtype), jnp.result_type(float))


@functools.lru_cache(maxsize=256)
def _output_spec(network, structure, shapes, image, widest) -> Outputs:
  del widest  # part of the key alone: the types of what a network computes may depend on it
  variables = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
  return jax.eval_shape(functools.partial(frozen_outputs, network), variables, jax.ShapeDtypeStruct(*image))


@functools.partial(jax.jit, static_argnums=0)
def _head_and_norms(network: nn.Module, variables: Any, image: jax.Array) -> Any:
  said = frozen_outputs(network, variables, image)
  return said.head, said.norms


def _constant_outputs(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """What a network says of no image in particular: its classifier and norms. Of the rest only the shapes."""
  blank = jnp.zeros((1, *image.shape[1:]), image.dtype)
  head, norms = _head_and_norms(network, variables, blank)
  return output_spec(network, variables, blank)._replace(head=head, norms=norms)
