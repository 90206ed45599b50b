"""One stage of training: the sum of the terms, its gradient, the update. Pure; knows no device and no disk.

  L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i tau^2 KL(p_ref,i || p_student,i)

Every term of the objective is written once, in `objective`; the last is `training/reference.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.method import Method, mean
from smskd_jax.state import Batch, Frozen, Outputs, TrainState
from smskd_jax.training import reference as anchor
from smskd_jax.training.reference import Reference


class Term(NamedTuple):
  """One distillation term of the objective."""

  name: str  # how metrics call it
  weight: float
  method: Method
  warmup_epochs: float = 0.0  # the weight grows linearly, epoch by epoch: 1/n of it in the first of n epochs


class Stage(NamedTuple):
  """What one stage trains, from whom and how."""

  learner: nn.Module
  optimizer: optax.GradientTransformation
  teachers: tuple[nn.Module, ...] = ()
  terms: tuple[Term, ...] = ()
  task_weight: float = 1.0
  reference: Reference | None = None
  steps_per_epoch: int = 1  # for all that is scheduled in epochs
  # whether the optimiser is given the gradient of the task and, as `distill`, that of all other terms
  two_gradients: bool = False
  # (key, batch) -> what the networks see, [b, h, w, c] of floats
  view: Callable[[jax.Array, Batch], jax.Array] = lambda key, batch: batch.image


Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


def outputs(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """What a frozen network says: by its running statistics, changing nothing."""
  return cast(Outputs, network.apply(variables, image))


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

    def objective(params):
      return _objective(stage, params, state, teachers, reference, image, batch, key, axis_name)

    gradients, (metrics, model_state, aux_state) = _gradients(objective, state.params, stage.two_gradients)
    gradients, metrics = mean((gradients, metrics), axis_name)
    first, *others = gradients
    apart = {"distill": others[0]} if others else {}
    updates, opt_state = stage.optimizer.update(first, state.opt_state, state.params, **apart)
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=model_state,
      aux_state=aux_state,
      opt_state=opt_state,
    )
    gradient = optax.tree.add(*gradients) if others else first
    return new_state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

  return step


def _gradients(objective: Callable[[Any], Any], params: Any, two: bool) -> tuple[tuple[Any, ...], Any]:
  """The gradient of the sum of both parts of the objective, or of each of the two; and what it says besides."""
  (task, rest), pull_back, besides = jax.vjp(objective, params, has_aux=True)
  one, zero = jnp.ones_like(task), jnp.zeros_like(task)
  parts = ((one, zero), (zero, one)) if two else ((one, one),)
  return tuple(pull_back(part)[0] for part in parts), besides


def _objective(stage, params, state, teachers, reference, image, batch, key, axis_name):
  """This device's share of the loss as (task, all else), and (metrics, new model state, new aux state)."""
  learner, model_state = stage.learner.apply(
    {"params": params["learner"], **state.model_state},
    image,
    train=True,
    axis_name=axis_name,
    mutable=list(state.model_state),
  )
  # The networks of a cohort all learn the task.
  task = sum(_cross_entropy(network.logits, batch.label) for network in (learner, *learner.peers))
  epoch = state.step / stage.steps_per_epoch
  metrics = {
    "task": task,
    "accuracy": jnp.mean(jnp.argmax(learner.logits, -1) == batch.label, dtype=task.dtype),
  }
  of_task, rest = stage.task_weight * task, jnp.zeros_like(task)
  aux_states = []
  for i, term in enumerate(stage.terms):
    values, aux_state = term.method.apply(
      params["aux"][i],
      state.aux_state[i],
      learner,
      teachers,
      batch,
      jax.random.fold_in(key, i),
      epoch,
      axis_name,
    )
    metrics[f"distill/{term.name}"] = distill = jnp.mean(values)
    rest = rest + term.weight * (warm_up(term, epoch) * distill)
    aux_states.append(aux_state)
  if stage.reference is not None:
    anchored, of_reference = _reference_term(stage.reference, learner, reference, teachers, batch, axis_name)
    rest = rest + stage.reference.weight * anchored
    metrics |= of_reference
  return (of_task, rest), (metrics | {"loss": of_task + rest}, model_state, tuple(aux_states))


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


def warm_up(term: Term, epoch: jax.Array) -> jax.Array | float:
  """The share of a term's weight; it stays the same within an epoch, as in the public code of DKD and ReviewKD."""
  if not term.warmup_epochs:
    return 1.0
  return jnp.minimum((jnp.floor(epoch) + 1) / term.warmup_epochs, 1.0)


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
