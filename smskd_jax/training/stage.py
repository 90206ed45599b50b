"""One stage of training: the sum of the terms, its gradient, the update. Pure; knows no device and no disk.

  L = lambda_c CE + sum_j weight_j L_j + lambda_r mean_i w_i KL(p_student,i || p_reference,i)

The terms are in `training/objective.py`; the last is `training/reference.py`.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import jax.numpy as jnp
import optax

from smskd_jax.losses.contract import pmean
from smskd_jax.training import objective as objective_lib
from smskd_jax.training import targets, trainable, views
from smskd_jax.training.cached_forward import lookup_outputs
from smskd_jax.training.objective import LossParts, Metrics, Term
from smskd_jax.training.reference import Reference
from smskd_jax.training.targets import Targets
from smskd_jax.types import Batch, Frozen, Outputs, TrainState

RNG_MIX = 1 << 16  # the stream of a view's key from which mixing draws: far from the numbers of views


class Stage(NamedTuple):
  """What one stage trains, from whom and how."""

  student: nn.Module
  optimizer: optax.GradientTransformation
  teachers: tuple[nn.Module, ...] = ()
  terms: tuple[Term, ...] = ()
  task_weight: float = 1.0
  label_smoothing: float = 0.0
  reference: Reference | None = None
  steps_per_epoch: int = 1  # for all that is scheduled in epochs
  # whether the optimiser is given the gradient of the task and, as `distill`, that of all other terms
  separate_distill_gradient: bool = False
  # each (key, batch) -> what the networks see, [b, h, w, c] of floats; every term is the mean over them
  views: tuple[Callable[[jax.Array, Batch], jax.Array], ...] = (lambda key, batch: batch.image,)
  # (key, images, labels [b], axis_name) -> mixed images, what is right for them
  mix: Callable[..., tuple[jax.Array, Targets]] | None = None
  ema_decay: float = 0.0  # the decay of the learner's moving average; 0: there is none
  trainable: str = "all"  # of the learner: "all", or its linear classifier alone, its "head"
  teacher_statistics: str = "running"  # of their batch norm; or those of the "batch"
  # (key, batch) -> which of its finitely many views an image is seen in, [b], the same for all of `views`: the teachers
  # are then looked up, as `Kept` in `Frozen`, and never run
  view_index_fn: Callable[[jax.Array, Batch], jax.Array] | None = None
  all_examples_labeled: bool = (
    False  # every image is known to have a label: the devices need not count them each step
  )
  alternate_epochs: int = 0  # after so many the terms take turns; 0: all at once
  # what computes with the reference's variables; None: the learner. Another where its normalisation is another
  reference_network: nn.Module | None = None

  @property
  def reference_module(self) -> nn.Module:
    """The network of the reference."""
    return self.student if self.reference_network is None else self.reference_network


TrainStep = Callable[[TrainState, Frozen, Batch], tuple[TrainState, Metrics]]


def frozen_outputs(network: nn.Module, variables: Any, image: Any) -> Outputs:
  """What a frozen network says: by its running statistics, changing nothing."""
  return cast(Outputs, network.apply(variables, image))


def frozen_outputs_batch_stats(
  network: nn.Module, variables: Any, image: Any, axis_name: str | None
) -> Outputs:
  """What a frozen network says by the statistics of the batch, as if it trained; what it would remember is dropped."""
  collections = [name for name in variables if name != "params"]
  said, _ = network.apply(variables, image, train=True, axis_name=axis_name, mutable=collections)
  return cast(Outputs, said)


def student_variables(state: TrainState) -> Any:
  """The learner's variables alone: what a stage leaves to the next, and to the world."""
  if state.ema:
    return state.ema
  return {"params": state.params["student"], **state.model_state}


def make_train_step(stage: Stage, axis_name: str | None = None) -> TrainStep:
  """The pure step of a stage, to be compiled by the caller.

  Args:
    stage: the stage. Its teachers' and reference's variables are arguments of the step, in `Frozen`.
    axis_name: the axis of devices over which the batch is split. Batch statistics, relations, weights, gradients
      and metrics then span it, so that the step is that of the whole batch.

  Returns:
    (state, frozen, batch) -> (new state, metrics), metrics being scalars by name: 'loss', its terms before their
    weights ('task', 'distill/NAME', 'reference'), 'accuracy', 'gradient_norm', and with a reference the means of
    'reference_tcp', 'teacher_tcp' (if there is a teacher), 'reference_weight', 'reference_weight_of_right' (where the
    learner is wrong, zero is counted), and 'reference_weight_share/I', the fraction of weights in the I-th tenth from
    0 to 1.
  """

  def step(state: TrainState, frozen: Frozen, batch: Batch) -> tuple[TrainState, Metrics]:
    objective, seen = _objective(stage, state, frozen, batch, axis_name)
    gradients, (metrics, model_state, method_state) = _gradients(
      objective, state.params, TASK_VS_DISTILL if stage.separate_distill_gradient else WHOLE_LOSS
    )
    gradients, metrics = pmean((gradients, metrics), axis_name)
    if stage.trainable == "head":
      of_head = trainable.head_mask(
        stage.student, {"params": state.params["student"], **state.model_state}, seen[0].image
      )
      gradients = tuple(trainable.apply_mask(of_head, one) for one in gradients)
    first, *others = gradients
    apart = {"distill": others[0]} if others else {}
    updates, opt_state = stage.optimizer.update(first, state.opt_state, state.params, **apart)
    if stage.trainable == "head":
      updates = trainable.apply_mask(of_head, updates)  # again: decay does not ask for gradients
    new_state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      model_state=model_state,
      method_state=method_state,
      opt_state=opt_state,
      ema=state.ema,
    )
    if stage.ema_decay:
      new_state = new_state._replace(ema=_update_ema(stage.ema_decay, new_state))
    gradient = optax.tree.add(*gradients) if others else first
    return new_state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

  return step


def make_gradient_diagnostics(stage: Stage, axis_name: str | None = None) -> Callable[..., Metrics]:
  """What pulls on the learner: (state, frozen, batch) -> scalars by name, to be compiled by the caller.

  Of the batch of a step, before it: the norms of the gradients of the learner's parameters by each part of the
  objective that the stage has, with its weights ('gradient_norm/task', '/distill', '/reference'), and the cosines
  between them ('gradient_cosine/task_distill', ...). It costs one forward pass of all networks and as many backward
  passes as there are parts.
  """
  names = ("task", *(("distill",) if stage.terms else ()), *(("reference",) if stage.reference else ()))
  counted = [tuple(int(part == name) for part in LossParts._fields) for name in names]

  def probe(state: TrainState, frozen: Frozen, batch: Batch) -> Metrics:
    objective, _ = _objective(stage, state, frozen, batch, axis_name)
    gradients, _ = _gradients(objective, state.params, counted)
    of_learner = pmean(tuple(gradient["student"] for gradient in gradients), axis_name)
    norms = [optax.tree.norm(gradient) for gradient in of_learner]
    metrics = {f"gradient_norm/{name}": norm for name, norm in zip(names, norms, strict=True)}
    for i, j in itertools.combinations(range(len(names)), 2):
      size = jnp.maximum(norms[i] * norms[j], jnp.finfo(norms[i].dtype).tiny)
      cosine = optax.tree.vdot(of_learner[i], of_learner[j]) / size
      metrics[f"gradient_cosine/{names[i]}_{names[j]}"] = cosine
    return metrics

  return probe


def sampled_view_indices(stage: Stage, key: jax.Array, step: Any, index: jax.Array) -> jax.Array:
  """The numbers of the views in which a step sees its images, of a stage whose views have numbers.

  Args:
    stage: the stage.
    key: of `Frozen`.
    step: [], how many steps were done before.
    index: [b], the images of the batch.

  Returns:
    [views, b], int32.
  """
  assert stage.view_index_fn is not None
  batch = Batch(index, index, index)  # a number asks for nothing but the index
  return jnp.stack([stage.view_index_fn(of_view, batch) for of_view in _step_keys(stage, key, step)[0]])


def _step_keys(stage, key, step):
  """The random keys of a step: of each view, and of the objective."""
  view_key, rest = jax.random.split(jax.random.fold_in(key, step))
  return [view_key if i == 0 else jax.random.fold_in(view_key, i) for i in range(len(stage.views))], rest


def _objective(stage, state, frozen, batch, axis_name):
  """The objective of a step as a function of the parameters, and the views that it sees."""
  keys, key = _step_keys(stage, frozen.key, state.step)
  seen = tuple(
    _make_view(stage, frozen, *pair, batch, axis_name) for pair in zip(stage.views, keys, strict=True)
  )

  def objective(params):
    return objective_lib.compute_objective(stage, params, state, seen, batch, key, axis_name)

  return objective, seen


def _make_view(stage, frozen, view, key, batch, axis_name) -> views.ViewInputs:
  """A view of the batch, what is right for it, and what the frozen networks say of it."""
  image, answer = view(key, batch), Targets(batch.label)
  if stage.mix is not None:
    image, answer = stage.mix(jax.random.fold_in(key, RNG_MIX), image, batch.label, axis_name)
  teachers = _teacher_outputs(stage, frozen, key, image, batch, axis_name)
  reference = (
    None if stage.reference is None else frozen_outputs(stage.reference_module, frozen.reference, image)
  )
  labeled = jnp.ones(()) if stage.all_examples_labeled else targets.labeled_fraction(answer.label, axis_name)
  return views.ViewInputs(image, answer, teachers, reference, labeled)


def _teacher_outputs(stage, frozen, key, image, batch, axis_name) -> tuple[Outputs, ...]:
  """What the teachers say of the image that a view has made with a key."""
  if stage.view_index_fn is not None:
    number = stage.view_index_fn(key, batch)
    return tuple(lookup_outputs(of_teacher, batch.index, number) for of_teacher in frozen.teachers)
  said = frozen_outputs
  if stage.teacher_statistics == "batch":
    said = functools.partial(frozen_outputs_batch_stats, axis_name=axis_name)
  return tuple(map(functools.partial(said, image=image), stage.teachers, frozen.teachers))


def _update_ema(decay: float, state: TrainState) -> Any:
  """The moving average after a step: of the parameters and of what batch norm remembers."""
  now = {"params": state.params["student"], **state.model_state}
  return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, now)


# What of the objective counts in each gradient of a step, in the order of its parts.
WHOLE_LOSS = ((1, 1, 1),)
TASK_VS_DISTILL = ((1, 0, 0), (0, 1, 1))


def _gradients(
  objective: Callable[[Any], tuple[LossParts, Any]], params: Any, part_weights: Sequence[tuple[int, ...]]
) -> tuple[tuple[Any, ...], Any]:
  """The gradient of each sum of parts of the objective, and what it says besides."""
  parts, pull_back, besides = jax.vjp(objective, params, has_aux=True)
  weigh = lambda counts: LossParts(*(jnp.full_like(part, c) for part, c in zip(parts, counts, strict=True)))
  return tuple(pull_back(weigh(counts))[0] for counts in part_weights), besides
