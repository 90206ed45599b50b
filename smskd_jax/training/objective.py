"""The terms of a stage's objective, each written once. Pure.

L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i KL(p_student,i || p_reference,i)
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context, Method
from smskd_jax.training import reference as anchor
from smskd_jax.training import targets, views
from smskd_jax.types import Batch, Outputs, TrainState

RNG_WEIGHTS = 1 << 16  # the stream of a step's key from which weights draw: far from the numbers of methods
NUM_WEIGHT_BINS = (
  10  # of the shares of weights between 0 and 1 that are reported; what is above is in the last
)

Metrics = dict[str, jax.Array]


class LossParts(NamedTuple):
  """A device's share of the objective, in three; their sum is the loss."""

  task: jax.Array  # []
  distill: jax.Array
  reference: jax.Array


class Term(NamedTuple):
  """One distillation term of the objective."""

  name: str  # how metrics call it
  weight: float
  method: Method
  warmup_epochs: float = 0.0  # the weight grows linearly, epoch by epoch: 1/n of it in the first of n epochs


def compute_objective(
  stage: Any,
  params: Any,
  state: TrainState,
  view_inputs: tuple[views.ViewInputs, ...],
  batch: Batch,
  key: jax.Array,
  axis_name: str | None,
) -> tuple[LossParts, tuple[Metrics, Any, tuple[Any, ...]]]:
  """The objective of a step.

  Args:
    stage: a `training.stage.Stage`.
    params: what it is differentiated by: the state's parameters.
    state: all else that the step may change.
    seen: the views of the batch, with what the frozen networks say of them.
    batch: the batch.
    key: of the step.
    axis_name: the axis of devices.

  Returns:
    The parts, and (metrics, new model state, new aux state).
  """
  learners, model_state = [], state.model_state
  for view in view_inputs:
    learner, model_state = stage.student.apply(
      {"params": params["student"], **model_state},
      view.image,
      train=True,
      axis_name=axis_name,
      mutable=list(model_state),
    )
    learners.append(learner)
  each = lambda term: views.mean_arrays([term(*pair) for pair in zip(learners, view_inputs, strict=True)])
  metrics = {
    "task": each(functools.partial(_task_loss, stage)),
    "accuracy": each(_accuracy),
  }
  of_task = stage.task_weight * metrics["task"]
  of_terms = of_reference = jnp.zeros_like(of_task)
  epoch = state.step / stage.steps_per_epoch
  method_states = []
  for i, term in enumerate(stage.terms):
    apply = functools.partial(term.method.apply, params["methods"][i])
    run = views.apply_all_views if term.method.multi_view else views.apply_per_view
    context = Context(batch, jax.random.fold_in(key, i), epoch, axis_name)
    values, method_state = run(apply, state.method_state[i], learners, view_inputs, context)
    metrics[f"distill/{term.name}"] = distill = jnp.mean(values)
    of_terms = of_terms + term.weight * (term_scale(stage, i, epoch) * distill)
    method_states.append(method_state)
  if stage.reference is not None:
    of_anchor, its_key = params.get("reference", {}), jax.random.fold_in(key, RNG_WEIGHTS)
    of_views = [
      _reference_term(stage, of_anchor, learner, view, jax.random.fold_in(its_key, i), axis_name)
      for i, (learner, view) in enumerate(zip(learners, view_inputs, strict=True))
    ]
    metrics |= {name: views.mean_arrays([one[name] for one in of_views]) for name in of_views[0]}
    of_reference = stage.reference.weight * metrics["reference"]
  metrics["loss"] = of_task + (of_terms + of_reference)
  return LossParts(of_task, of_terms, of_reference), (metrics, model_state, tuple(method_states))


def _task_loss(stage: Any, learner: Outputs, view: views.ViewInputs) -> jax.Array:
  """The mean cross-entropy over all images that have a label. The networks of a cohort all learn the task."""
  networks = (learner, *learner.peer_outputs)
  smoothing = stage.label_smoothing
  values = views.sum_arrays(
    [targets.cross_entropy(n.logits, view.targets, smoothing=smoothing) for n in networks]
  )
  return jnp.mean(values) / view.labeled_fraction.astype(values.dtype)


def _accuracy(learner: Outputs, view: views.ViewInputs) -> jax.Array:
  """How many of the images that have a label get it; of a mixed one, that of its larger part."""
  right = jnp.argmax(learner.logits, -1) == view.targets.label
  return jnp.mean(right, dtype=learner.logits.dtype) / view.labeled_fraction.astype(learner.logits.dtype)


def term_scale(stage: Any, index: int, epoch: jax.Array) -> jax.Array | float:
  """The share of the i-th term's weight that counts in an epoch: its warm-up, and whether it is its turn.

  The warm-up stays the same within an epoch, as in the public code of DKD and ReviewKD.
  """
  term, now = stage.terms[index], jnp.floor(epoch)
  part = jnp.minimum((now + 1) / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
  if not stage.alternate_epochs:
    return part
  return part * (now // stage.alternate_epochs % len(stage.terms) == index)


def _reference_term(stage, params, learner, view, key, axis_name) -> Metrics:
  """The mean of the weighted reference loss, and what is to be known of its weights."""
  reference, answer = cast(Outputs, view.reference).logits, view.targets
  teachers = [teacher.logits for teacher in view.teachers]
  inputs = anchor.weighting_inputs(
    stage.reference, teachers, reference, answer.label, answer.soft_label, key, axis_name
  )
  values, weights = anchor.weighted_reference_loss(stage.reference, params, learner.logits, reference, inputs)
  weights = jax.lax.stop_gradient(weights)
  right = jnp.argmax(learner.logits, axis=-1) == answer.label
  metrics = {
    "reference": jnp.mean(values),
    "reference_tcp": jnp.mean(inputs.reference_tcp),
    "reference_weight": jnp.mean(weights),
    "reference_weight_of_right": jnp.mean(jnp.where(right, weights, 0)),
  }
  if teachers:
    metrics["teacher_tcp"] = jnp.mean(inputs.teacher_tcp)
  if stage.reference.weighting != "constant":
    bins = jnp.clip(jnp.floor(weights * NUM_WEIGHT_BINS), 0, NUM_WEIGHT_BINS - 1)
    metrics |= {
      f"reference_weight_share/{i}": jnp.mean(bins == i, dtype=weights.dtype) for i in range(NUM_WEIGHT_BINS)
    }
  return metrics
