"""What earlier stages asked for, asked again: the values of their losses for a network that has moved on. Pure."""

from collections.abc import Callable, Collection
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.losses.contract import Context, pmean
from smskd_jax.training.stage import Stage, frozen_outputs, frozen_outputs_batch_stats
from smskd_jax.types import Batch


class StageLossInputs(NamedTuple):
  """What a stage has left besides its learner, for its losses to be computed again."""

  params: tuple[Any, ...]  # of its methods, one entry a term
  state: tuple[Any, ...]
  teachers: tuple[Any, ...]  # the variables of its teachers


def make_stage_losses(
  stage: Stage,
  terms: Collection[int],
  normalize: Callable[[jax.Array], jax.Array],
  axis_name: str | None = None,
) -> Callable[[Any, StageLossInputs, Batch], dict[str, jax.Array]]:
  """The pure function (learner's variables, lesson, batch) -> means over the batch by the term's name.

  The networks see the images as they are, unaugmented, and by their running statistics (the teachers by the batch's
  where the stage has it so). What the methods themselves learned stays as the stage left it. The values are before
  the terms' weights, and for a relational loss those of a batch of this size.

  Args:
    stage: the earlier stage.
    terms: which of its terms, by their places. A method that needs several views apart sees only one.
    normalize: images as stored -> what the networks see.
    axis_name: the axis of devices over which the batch is split.
  """

  def losses(variables: Any, lesson: StageLossInputs, batch: Batch) -> dict[str, jax.Array]:
    image = normalize(batch.image)
    said: Callable[[nn.Module, Any, Any], Any] = frozen_outputs
    if stage.teacher_statistics == "batch":
      said = functools.partial(frozen_outputs_batch_stats, axis_name=axis_name)
    teachers = tuple(said(n, v, image) for n, v in zip(stage.teachers, lesson.teachers, strict=True))
    learner, epoch = frozen_outputs(stage.student, variables, image), jnp.zeros(())
    values = {}
    for i in terms:
      term, key = stage.terms[i], jax.random.key(i)
      context = Context(batch, key, epoch, axis_name)
      of_term, _ = term.method.apply(lesson.params[i], lesson.state[i], learner, teachers, context)
      values[term.name] = jnp.mean(of_term)
    return pmean(values, axis_name)

  return losses
