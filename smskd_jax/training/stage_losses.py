"""Distillation losses of an earlier stage, recomputed for the current student. Pure."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context, pmean
from smskd_jax.training.stage import Stage, frozen_outputs, teacher_forward
from smskd_jax.types import Batch


class StageLossInputs(NamedTuple):
  """State at the end of a stage from which its losses can be recomputed."""

  params: tuple[Any, ...]  # of its methods, one entry a term
  state: tuple[Any, ...]  # of its methods, one entry a term
  teachers: tuple[Any, ...]  # variables of its teachers


def make_stage_losses(
  stage: Stage,
  terms: Collection[int],
  normalize: Callable[[jax.Array], jax.Array],
  axis_name: str | None = None,
) -> Callable[[Any, StageLossInputs, Batch], dict[str, jax.Array]]:
  """Makes the pure function (student's variables, inputs, batch) -> losses, for the caller to compile.

  Losses are means over the batch, by the term's name, before the terms' weights; a relational loss is that of a batch
  of this size. Networks get the images without augmentation and use their running statistics (teachers those of the
  batch where the stage does). Parameters and memory of the methods stay as the stage left them.

  Args:
    stage: the earlier stage.
    terms: indices of the terms to compute. A method of several views gets one view.
    normalize: stored images -> inputs of the networks.
    axis_name: axis of devices over which the batch is split.
  """
  forward = teacher_forward(stage, axis_name)

  def losses(variables: Any, inputs: StageLossInputs, batch: Batch) -> dict[str, jax.Array]:
    image = normalize(batch.image)
    teachers = tuple(forward(n, v, image) for n, v in zip(stage.teachers, inputs.teachers, strict=True))
    student, epoch = frozen_outputs(stage.student, variables, image), jnp.zeros(())
    means = {}
    for i in terms:
      term, key = stage.terms[i], jax.random.key(i)
      context = Context(batch, key, epoch, axis_name)
      values, _ = term.method.apply(inputs.params[i], inputs.state[i], student, teachers, context)
      means[term.name] = jnp.mean(values)
    return pmean(means, axis_name)

  return losses
