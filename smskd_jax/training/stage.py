"""One stage of training: the sum of the terms, its gradient, the update. Pure; knows no device and no disk.

  L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i tau^2 KL(p_ref,i || p_student,i)

Every term of the objective is written once, in `objective`; the last is `training/reference.py`.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.method import Method, mean
from smskd_jax.state import Aux, Batch, Frozen, Outputs, TrainState
from smskd_jax.training import reference as anchor
from smskd_jax.training.reference import Reference


class Term(NamedTuple):
  """One distillation term of the objective."""

  name: str  # how metrics call it
  weight: float
  method: Method


class Stage(NamedTuple):
  """What one stage trains, from whom and how."""

  learner: nn.Module
  optimizer: optax.GradientTransformation
  teachers: tuple[nn.Module, ...] = ()
  terms: tuple[Term, ...] = ()
  task_weight: float = 1.0
  reference: Reference | None = None
  # (key, batch) -> what the networks see, [b, h, w, c] of floats
  view: Callable[[jax.Array, Batch], jax.Array] = lambda key, batch: batch.image


Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


def init_variables(network: nn.Module, key: jax.Array, image: Any) -> Any:
  """Fresh variables of a network for images like `image` ([b, h, w, c], an array or its shape)."""
  return _init(network, key, jnp.zeros(image.shape, image.dtype))


@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"})
def _init(network: nn.Module, key: jax.Array, image: jax.Array) -> Any:
  """Compiled as a whole, because layer by layer takes seconds, and in haste, because it runs once."""
  return network.init(key, image)


def init_state(
  stage: Stage, key: jax.Array, variables: Any, teachers: tuple[Any, ...], image: Any, num_examples: int
) -> TrainState:
  """The state before the first step: the learner's variables, fresh auxiliary parameters and optimiser state.

  Our reading of SMSKD: what the methods and the optimiser have gathered does not outlive its stage.

  Args:
    stage: the stage.
    key: random key of the methods' initialisation.
    variables: the learner's, as an earlier stage left them or fresh. Copied.
    teachers: the teachers' variables; only their shapes are read.
    image: a batch of what the networks see, [b, h, w, c], an array or its shape.
    num_examples: size of the training set.

  Raises:
    ValueError: a method is not defined for these networks.
  """
  learner_spec = output_spec(stage.learner, variables, image)
  teacher_specs = tuple(output_spec(n, v, image) for n, v in zip(stage.teachers, teachers, strict=True))
  aux: list[Aux] = [
    term.method.init(jax.random.fold_in(key, i), learner_spec, teacher_specs, num_examples)
    for i, term in enumerate(stage.terms)
  ]
  model_state = {name: tree for name, tree in variables.items() if name != "params"}
  params = {"learner": variables["params"], "aux": tuple(a.params for a in aux)}
  params, model_state = anchor.snapshot((params, model_state))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    aux_state=tuple(a.state for a in aux),
    opt_state=stage.optimizer.init(params),
  )


def outputs(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """What a frozen network says: by its running statistics, changing nothing."""
  return cast(Outputs, network.apply(variables, image))


def output_spec(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """The shapes of a network's outputs, without running it."""
  return jax.eval_shape(lambda v, x: outputs(network, v, x), variables, image)


def learner_variables(state: TrainState) -> Any:
  """The learner's variables alone: what a stage leaves to the next, and to the world."""
  return {"params": state.params["learner"], **state.model_state}


def make_train_step(stage: Stage, axis_name: str | None = None) -> Step:
  """The pure step of a stage, to be compiled by the caller.

  Args:
    stage: the stage. Its teachers' and reference's variables are arguments of the step, in `Frozen`.
    axis_name: the axis of devices over which the batch is split. Batch statistics, relations, weights, gradients
      and metrics then span it, so that the step is that of the whole batch.

  Returns:
    (state, frozen, batch) -> (new state, metrics), metrics being scalars by name: 'loss', its terms before their
    weights ('task', 'distill/NAME', 'reference'), 'accuracy', 'gradient_norm', and with a reference 'tcp' and
    'reference_weight', the means of what weights it.
  """

  def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    view_key, key = jax.random.split(jax.random.fold_in(frozen.key, state.step))
    image = stage.view(view_key, batch)
    teachers = tuple(
      network.apply(variables, image)
      for network, variables in zip(stage.teachers, frozen.teachers, strict=True)
    )
    reference = None if stage.reference is None else outputs(stage.learner, frozen.reference, image)
    gradient_of = jax.value_and_grad(_objective, argnums=1, has_aux=True)
    (_, (metrics, model_state, aux_state)), gradient = gradient_of(
      stage, state.params, state, teachers, reference, image, batch, key, axis_name
    )
    gradient, metrics = mean((gradient, metrics), axis_name)
    updates, opt_state = stage.optimizer.update(gradient, state.opt_state, state.params)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=model_state,
      aux_state=aux_state,
      opt_state=opt_state,
    )
    return new_state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

  return step


def _objective(stage, params, state, teachers, reference, image, batch, key, axis_name):
  """This device's share of the loss, (metrics, new model state, new aux state)."""
  learner, model_state = stage.learner.apply(
    {"params": params["learner"], **state.model_state},
    image,
    train=True,
    axis_name=axis_name,
    mutable=list(state.model_state),
  )
  task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(learner.logits, batch.label))
  metrics = {
    "task": task,
    "accuracy": jnp.mean(jnp.argmax(learner.logits, -1) == batch.label, dtype=task.dtype),
  }
  loss = stage.task_weight * task
  aux_states = []
  for i, term in enumerate(stage.terms):
    values, aux_state = term.method.apply(
      params["aux"][i],
      state.aux_state[i],
      learner,
      teachers,
      batch,
      jax.random.fold_in(key, i),
      state.step,
      axis_name,
    )
    metrics[f"distill/{term.name}"] = distill = jnp.mean(values)
    loss = loss + term.weight * distill
    aux_states.append(aux_state)
  if stage.reference is not None:
    anchored, of_reference = _reference_term(stage.reference, learner, reference, teachers, batch, axis_name)
    loss = loss + stage.reference.weight * anchored
    metrics |= of_reference
  return loss, (metrics | {"loss": loss}, model_state, tuple(aux_states))


def _reference_term(
  settings: Reference,
  learner: Outputs,
  reference: Outputs,
  teachers: tuple[Outputs, ...],
  batch: Batch,
  axis_name: str | None,
) -> tuple[jax.Array, Metrics]:
  """The mean of the weighted reference loss, and the metrics of it. Several teachers: the mean of their TCP."""
  metrics = {}
  weights = jnp.ones_like(learner.logits[:, 0])
  if settings.weighting != "constant":
    temperature = settings.tcp_temperature
    of_each = [
      anchor.true_class_probability(t.logits, batch.label, temperature=temperature) for t in teachers
    ]
    tcp = jnp.mean(jnp.stack(of_each), axis=0)
    weights = anchor.sample_weights(
      tcp, weighting=settings.weighting, normalize=settings.normalize, axis_name=axis_name
    )
    metrics["tcp"] = jnp.mean(tcp)
  values = anchor.loss(learner.logits, reference.logits, weights, temperature=settings.temperature)
  return jnp.mean(values), metrics | {"reference": jnp.mean(values), "reference_weight": jnp.mean(weights)}
