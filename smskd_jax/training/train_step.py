"""Training step of a stage: the gradient of the objective and the optimizer's update. Pure.

`training/objective.py` computes the objective, `training/reference.py` the reference term of SMSKD, and
`training/loop.py` compiles the step for devices.
"""

from collections.abc import Callable, Sequence
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.contract import pmean
from smskd_jax.training import targets
from smskd_jax.training.objective import LossParts, ObjectiveAux, ViewInputs, compute_objective
from smskd_jax.training.stage import (
  Metrics,
  Stage,
  ViewFn,
  frozen_outputs,
  head_mask,
  lookup_outputs,
  make_segments,
  raw_student_variables,
  teacher_forward,
)
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, Frozen, Outputs, Segments, TrainState

RNG_MIX = 1 << 16  # folded into a view's key for mixing; greater than any index of a view

TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]
GradientDiagnostics = Callable[[TrainState, Frozen, Batch], Metrics]

# Weights of the objective's parts (task, distill, reference) in each gradient of a step.
WHOLE_LOSS = (LossParts(1, 1, 1),)
TASK_VS_DISTILL = (LossParts(1, 0, 0), LossParts(0, 1, 1))


def make_train_step(stage: Stage, axis_name: str | None = None) -> TrainStep:
  """Makes the training step of a stage, a pure function for the caller to compile.

  Args:
    stage: the stage. The variables of its teachers and of its reference are arguments of the step, in `Frozen`.
    axis_name: axis of devices over which the batch is split. Batch statistics, relations between examples, weights,
      gradients and metrics span the axis: the step is that of the global batch.

  Returns:
    (state, frozen, batch) -> (new state, metrics). Metrics are scalars by name: 'loss', its terms before their weights
    ('task', 'distill/NAME', 'reference'), 'accuracy' and 'gradient_norm'; scalars of a method, 'method/NAME/SCALAR';
    with a reference also the means of 'reference_tcp', 'teacher_tcp' (if there is a teacher), 'reference_weight',
    'reference_weight_if_correct' (with zero for images that the student misclassifies), and
    'reference_weight_fraction/I', the fraction of weights in the I-th tenth of [0, 1].
  """

  def train_step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    objective, views = _make_objective(stage, state, frozen, batch, axis_name)
    part_weights = TASK_VS_DISTILL if stage.separate_distill_gradient else WHOLE_LOSS
    gradients, aux = _gradients(objective, state.params, part_weights)
    gradients, metrics = pmean((gradients, aux.metrics), axis_name)
    apply_mask = _make_mask(stage, state, views[0].image)
    gradient, *distill = map(apply_mask, gradients)
    updates, opt_state = stage.optimizer.update(
      gradient, state.opt_state, state.params, **({"distill": distill[0]} if distill else {})
    )
    updates = apply_mask(updates)  # again, because weight decay adds to updates
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=aux.model_state,
      method_state=aux.method_state,
      opt_state=opt_state,
      ema=state.ema,
    )
    if stage.ema_decay:
      new_state = new_state._replace(ema=_update_ema(stage.ema_decay, new_state))
    whole = optax.tree.add(gradient, *distill) if distill else gradient
    return new_state, metrics | {"gradient_norm": optax.tree.norm(whole)}

  return train_step


def make_gradient_diagnostics(stage: Stage, axis_name: str | None = None) -> GradientDiagnostics:
  """Makes the function that compares the gradients of the objective's parts.

  The cost is one forward pass of all networks, and a backward pass for each part.

  Args:
    stage: the stage.
    axis_name: axis of devices over which the batch is split.

  Returns:
    (state, frozen, batch) -> metrics of the batch before the step: the norms of the gradients of the student's
    parameters by each weighted part that the stage has ('gradient_norm/task', '/distill', '/reference'), and the
    cosines between these gradients ('gradient_cosine/task_distill', ...).
  """
  names = ("task", *(("distill",) if stage.terms else ()), *(("reference",) if stage.reference else ()))
  part_weights = [LossParts(*(int(part == name) for part in LossParts._fields)) for name in names]

  def diagnostics(state: TrainState, frozen: Frozen, batch: Batch) -> Metrics:
    objective, _ = _make_objective(stage, state, frozen, batch, axis_name)
    by_part, _ = _gradients(objective, state.params, part_weights)
    gradients = pmean(tuple(gradient["student"] for gradient in by_part), axis_name)
    norms = [optax.tree.norm(gradient) for gradient in gradients]
    metrics = {f"gradient_norm/{name}": norm for name, norm in zip(names, norms, strict=True)}
    for i, j in itertools.combinations(range(len(names)), 2):
      product = jnp.maximum(norms[i] * norms[j], jnp.finfo(norms[i].dtype).tiny)
      cosine = optax.tree.vdot(gradients[i], gradients[j]) / product
      metrics[f"gradient_cosine/{names[i]}_{names[j]}"] = cosine
    return metrics

  return diagnostics


def sampled_view_indices(stage: Stage, key: jax.Array, step: Any, index: jax.Array) -> jax.Array:
  """Indices of the views that a step samples, for a stage with a `view_index_fn`.

  Args:
    stage: the stage.
    key: of `Frozen`.
    step: [], number of steps before this one.
    index: [b], of the images of the batch in the training set.

  Returns:
    [views, b], int32.
  """
  assert stage.view_index_fn is not None
  batch = Batch(index, index, index)  # view indices depend on `Batch.index` alone
  view_keys, _ = _step_keys(stage, key, step)
  return jnp.stack([stage.view_index_fn(view_key, batch) for view_key in view_keys])


def _step_keys(stage: Stage, key: jax.Array, step: Any) -> tuple[list[jax.Array], jax.Array]:
  """Random keys of a step: one for each view, and one for the objective."""
  view_key, objective_key = jax.random.split(jax.random.fold_in(key, step))
  others = [jax.random.fold_in(view_key, i) for i in range(1, len(stage.views))]
  return [view_key, *others], objective_key


def _make_objective(
  stage: Stage, state: TrainState, frozen: Frozen, batch: Batch, axis_name: str | None
) -> tuple[Callable[[Any], tuple[LossParts, ObjectiveAux]], tuple[ViewInputs, ...]]:
  """The objective of a step as a function of the parameters, and the inputs of each view."""
  view_keys, objective_key = _step_keys(stage, frozen.key, state.step)
  views = tuple(
    _make_view(stage, frozen, view, key, batch, axis_name)
    for view, key in zip(stage.views, view_keys, strict=True)
  )

  def segments(variables: Any, image: jax.Array) -> Segments:
    return make_segments(stage, variables, frozen.teachers, image)

  def objective(params: Any) -> tuple[LossParts, ObjectiveAux]:
    return compute_objective(stage, params, state, views, batch, objective_key, axis_name, segments)

  return objective, views


def _make_view(
  stage: Stage, frozen: Frozen, view: ViewFn, key: jax.Array, batch: Batch, axis_name: str | None
) -> ViewInputs:
  """Images and targets of a view, and the outputs of the frozen networks for these images."""
  image, view_targets = view(key, batch), Targets(batch.label)
  if stage.mix is not None:
    image, view_targets = stage.mix(jax.random.fold_in(key, RNG_MIX), image, batch.label, axis_name)
  teachers = _teacher_outputs(stage, frozen, key, image, batch, axis_name)
  reference = None
  if stage.reference is not None:
    reference = frozen_outputs(stage.reference_module, frozen.reference, image)
  if stage.all_examples_labeled:
    labeled = jnp.ones(())
  else:
    labeled = targets.labeled_fraction(view_targets.label, axis_name)
  return ViewInputs(image, view_targets, teachers, reference, labeled)


def _teacher_outputs(
  stage: Stage, frozen: Frozen, key: jax.Array, image: jax.Array, batch: Batch, axis_name: str | None
) -> tuple[Outputs, ...]:
  """Outputs of the teachers for a view's images, computed or looked up in their caches."""
  if stage.view_index_fn is not None:
    view_index = stage.view_index_fn(key, batch)
    return tuple(lookup_outputs(cached, batch.index, view_index) for cached in frozen.teachers)
  forward = teacher_forward(stage, axis_name)
  return tuple(forward(n, v, image) for n, v in zip(stage.teachers, frozen.teachers, strict=True))


def _gradients(
  objective: Callable[[Any], tuple[LossParts, ObjectiveAux]], params: Any, part_weights: Sequence[LossParts]
) -> tuple[tuple[Any, ...], ObjectiveAux]:
  """Gradients of weighted sums of the objective's parts, one for each weighting."""
  parts, vjp, aux = jax.vjp(objective, params, has_aux=True)
  cotangents = [LossParts(*map(jnp.full_like, parts, weights)) for weights in part_weights]
  return tuple(vjp(cotangent)[0] for cotangent in cotangents), aux


def _make_mask(stage: Stage, state: TrainState, image: jax.Array) -> Callable[[Any], Any]:
  """The function that zeroes a tree like `TrainState.params` at frozen parameters."""
  if stage.trainable == "all":
    return lambda tree: tree
  mask = head_mask(stage.student, raw_student_variables(state), image)

  def apply_mask(tree: Any) -> Any:
    student = jax.tree.map(lambda keep, x: x if keep else jnp.zeros_like(x), mask, tree["student"])
    return {**tree, "student": student}

  return apply_mask


def _update_ema(decay: float, state: TrainState) -> Any:
  """Moving average of the student's parameters and batch statistics after a step."""
  return jax.tree.map(
    lambda ema, new: decay * ema + (1 - decay) * new, state.ema, raw_student_variables(state)
  )
