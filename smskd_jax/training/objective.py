"""Objective of a stage, each of its terms written once. Pure.

  L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i KL(p_student,i || p_reference,i)

`losses/` holds the L_j, `training/targets.py` the cross-entropy, and `training/reference.py` the last term. Every term
is the mean over the views of a stage.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context
from smskd_jax.training import reference, targets
from smskd_jax.training.stage import Metrics, Stage
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, Outputs, Segments, TrainState

RNG_WEIGHTS = 1 << 16  # folded into a step's key for the weighting; greater than any index of a term

# (variables of the student, images of a view) -> parts of the networks.
SegmentsFn = Callable[[Mapping[str, Any], jax.Array], Segments]
# (aux state, student, teachers, context) -> (loss [b], new aux state): `Method.apply` with its parameters bound.
ApplyFn = Callable[[Any, Outputs, tuple[Outputs, ...], Context], tuple[jax.Array, Any]]


class ViewInputs(NamedTuple):
  """A view of the batch: all that does not depend on the student."""

  image: jax.Array  # [b, h, w, c]
  targets: Targets
  teachers: tuple[Outputs, ...]
  reference: Outputs | None
  labeled_fraction: jax.Array  # [], fraction of the global batch's images that have a label


class LossParts(NamedTuple):
  """Parts of a device's objective, each [] and with its weights; their sum is the loss."""

  task: Any
  distill: Any
  reference: Any


class ObjectiveAux(NamedTuple):
  """Results of the objective that are not differentiated."""

  metrics: Metrics
  model_state: Mapping[str, Any]  # new batch statistics of the student
  method_state: tuple[Any, ...]  # new state of the methods, one entry a term


def compute_objective(
  stage: Stage,
  params: Mapping[str, Any],
  state: TrainState,
  views: Sequence[ViewInputs],
  batch: Batch,
  key: jax.Array,
  axis_name: str | None,
  make_segments: SegmentsFn | None = None,
) -> tuple[LossParts, ObjectiveAux]:
  """Computes the objective of a step.

  Args:
    stage: the stage.
    params: parameters to differentiate by, like `TrainState.params`.
    state: the state before the step; its parameters are not read.
    views: the views of the batch.
    batch: the batch.
    key: random key of the step's objective.
    axis_name: axis of devices over which the batch is split.
    make_segments: for methods that read segments.

  Returns:
    The parts of the loss, and metrics and state. Metrics are of the local batch.
  """
  students, model_state = _student_outputs(stage, params, state.model_state, views, axis_name)
  pairs = list(zip(students, views, strict=True))
  metrics = {
    "task": mean_arrays([_task_loss(stage, student, view) for student, view in pairs]),
    "accuracy": mean_arrays([_accuracy(student, view) for student, view in pairs]),
  }
  task = stage.task_weight * metrics["task"]
  distill = reference_part = jnp.zeros_like(task)
  epoch = state.step / stage.steps_per_epoch
  method_states = []
  for i, term in enumerate(stage.terms):
    apply = functools.partial(term.method.apply, params["methods"][i])
    context = Context(batch, jax.random.fold_in(key, i), epoch, axis_name)
    if term.method.reads_segments:
      assert make_segments is not None
      variables = {"params": params["student"], **state.model_state}
      context = context._replace(segments=make_segments(variables, views[0].image))
    run = apply_all_views if term.method.multi_view else apply_per_view
    values, method_state = run(apply, state.method_state[i], students, views, context)
    metrics[f"distill/{term.name}"] = value = jnp.mean(values)
    if term.method.metrics is not None:
      scalars = term.method.metrics(method_state)
      metrics |= {f"method/{term.name}/{name}": scalar for name, scalar in scalars.items()}
    distill = distill + term.weight * (term_scale(stage, i, epoch) * value)
    method_states.append(method_state)
  if stage.reference is not None:
    metrics |= _reference_metrics(stage.reference, params.get("reference", {}), pairs, key, axis_name)
    reference_part = stage.reference.weight * metrics["reference"]
  metrics["loss"] = task + (distill + reference_part)
  return LossParts(task, distill, reference_part), ObjectiveAux(metrics, model_state, tuple(method_states))


def term_scale(stage: Stage, index: int, epoch: jax.Array) -> jax.Array | float:
  """Fraction of a term's weight in an epoch, by warm-up and alternation.

  The warm-up is constant within an epoch, as in the public code of DKD and ReviewKD.
  """
  term, whole_epoch = stage.terms[index], jnp.floor(epoch)
  scale = jnp.minimum((whole_epoch + 1) / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
  if not stage.alternate_epochs:
    return scale
  return scale * (whole_epoch // stage.alternate_epochs % len(stage.terms) == index)


def apply_per_view(
  apply: ApplyFn,
  method_state: Any,
  students: Sequence[Outputs],
  views: Sequence[ViewInputs],
  context: Context,
) -> tuple[jax.Array, Any]:
  """Applies a method to each view alone; returns the mean loss [b] and the last state."""
  values = []
  for i, (student, view) in enumerate(zip(students, views, strict=True)):
    key = context.key if i == 0 else jax.random.fold_in(context.key, i)
    value, method_state = apply(
      method_state, student, view.teachers, _view_context(context, view)._replace(key=key)
    )
    values.append(value)
  return mean_arrays(values), method_state


def apply_all_views(
  apply: ApplyFn,
  method_state: Any,
  students: Sequence[Outputs],
  views: Sequence[ViewInputs],
  context: Context,
) -> tuple[jax.Array, Any]:
  """Applies a method to the first view, with the others in `Outputs.view_outputs`."""
  teachers = zip(*(view.teachers for view in views), strict=True)
  return apply(
    method_state, _join_views(students), tuple(map(_join_views, teachers)), _view_context(context, views[0])
  )


def mean_arrays(arrays: Sequence[jax.Array]) -> jax.Array:
  """Mean of a few arrays; a single one is returned unchanged."""
  return arrays[0] if len(arrays) == 1 else sum_arrays(arrays) / len(arrays)


def sum_arrays(arrays: Sequence[jax.Array]) -> jax.Array:
  """Sum of a few arrays; a single one is returned unchanged."""
  first, *others = arrays
  return sum(others, first)


def _student_outputs(
  stage: Stage,
  params: Mapping[str, Any],
  model_state: Mapping[str, Any],
  views: Sequence[ViewInputs],
  axis_name: str | None,
) -> tuple[list[Outputs], Mapping[str, Any]]:
  """Outputs of the student in training mode for each view, and its last batch statistics."""
  students = []
  for view in views:
    student, model_state = stage.student.apply(
      {"params": params["student"], **model_state},
      view.image,
      train=True,
      axis_name=axis_name,
      mutable=list(model_state),
    )
    students.append(student)
  return students, model_state


def _task_loss(stage: Stage, student: Outputs, view: ViewInputs) -> jax.Array:
  """Mean cross-entropy over the labeled images, summed over the networks of a cohort."""
  networks = (student, *student.peer_outputs)
  values = sum_arrays(
    [targets.cross_entropy(n.logits, view.targets, smoothing=stage.label_smoothing) for n in networks]
  )
  return jnp.mean(values) / view.labeled_fraction.astype(values.dtype)


def _accuracy(student: Outputs, view: ViewInputs) -> jax.Array:
  """Accuracy over the labeled images; of a mixed image the label of the larger part counts."""
  correct = jnp.argmax(student.logits, -1) == view.targets.label
  return jnp.mean(correct, dtype=student.logits.dtype) / view.labeled_fraction.astype(student.logits.dtype)


def _reference_metrics(
  config: reference.Reference,
  params: Mapping[str, jax.Array],
  pairs: Sequence[tuple[Outputs, ViewInputs]],
  key: jax.Array,
  axis_name: str | None,
) -> Metrics:
  """Mean over the views of the reference loss and of the statistics of its weights."""
  weights_key = jax.random.fold_in(key, RNG_WEIGHTS)
  by_view = []
  for i, (student, view) in enumerate(pairs):
    assert view.reference is not None
    inputs = reference.weighting_inputs(
      config,
      [teacher.logits for teacher in view.teachers],
      view.reference.logits,
      view.targets,
      jax.random.fold_in(weights_key, i),
      axis_name,
    )
    metrics = reference.loss_and_statistics(
      config, params, student.logits, view.reference.logits, view.targets.label, inputs
    )
    if view.teachers:
      metrics["teacher_tcp"] = jnp.mean(inputs.teacher_tcp)
    by_view.append(metrics)
  return {name: mean_arrays([metrics[name] for metrics in by_view]) for name in by_view[0]}


def _view_context(context: Context, view: ViewInputs) -> Context:
  """Context with images and labels of a view; mixing may have changed the labels."""
  if context.segments is not None:
    context = context._replace(segments=context.segments._replace(image=view.image))
  return context._replace(batch=context.batch._replace(label=view.targets.label))


def _join_views(outputs: Sequence[Outputs]) -> Outputs:
  """A network's outputs for the first view, with those for the other views in `view_outputs`."""
  first, *others = outputs
  return first._replace(view_outputs=tuple(others))
