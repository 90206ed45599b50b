"""Statistics of the training set: functions of the teachers' outputs on all images. Pure.

A method that needs constants of the teachers, such as the mean embedding of each class, declares a `Reduction`. The
teachers compute their outputs once for every training image, without augmentation, before the first step; the
reduction accumulates these outputs batch by batch, and `Method.init` gets the result.
`smskd_jax/training/statistics.py` runs the pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.types import Outputs

Teachers = tuple[Outputs, ...]


class Reduction(NamedTuple):
  """A function of the teachers' outputs on all training images, accumulated batch by batch.

  Attributes:
    reads: outputs of the teachers that `update` reads. Only these are computed; the others are ().
    init: (teachers, labels) -> accumulator, a tree of arrays. `teachers` are `Outputs` of shapes; `labels` is [n],
      int32, on the host, of all images of the pass. Raises ValueError if the statistics are not defined for them.
    update: (accumulator, teachers, labels) -> accumulator like the previous one. `teachers` are `Outputs` of a batch,
      `labels` is [b]. Batches are in the order of the training set; the last one may be smaller.
    finish: accumulator -> statistics, a tree of arrays. The shapes depend on the networks, and not on the images.
  """

  reads: frozenset[str]
  init: Callable[[Teachers, Any], Any]
  update: Callable[[Any, Teachers, jax.Array], Any]
  finish: Callable[[Any], Any]


def reduce_outputs(reduction: Reduction | None, teachers: Teachers, labels: Any) -> Any:
  """Statistics of outputs [n, ...] that are all in memory; () without a reduction."""
  if reduction is None:
    return ()
  specs = jax.eval_shape(lambda: teachers)
  accumulator = reduction.init(specs, np.asarray(labels))
  return reduction.finish(reduction.update(accumulator, teachers, jnp.asarray(labels)))


def statistics_shapes(reduction: Reduction | None, teachers: Teachers, labels: Any) -> Any:
  """Shapes of the statistics, from shapes of the teachers' outputs; () without a reduction."""
  return (
    () if reduction is None else jax.eval_shape(lambda: reduction.finish(reduction.init(teachers, labels)))
  )


def join(reductions: Sequence[Reduction | None]) -> Reduction:
  """Several reductions in one pass; the statistics are a tuple, with () for None."""
  present = [one or Reduction(frozenset(), _init_nothing, _keep, _keep) for one in reductions]

  def init(teachers, labels):
    return tuple(one.init(teachers, labels) for one in present)

  def update(accumulators, teachers, labels):
    pairs = zip(present, accumulators, strict=True)
    return tuple(one.update(accumulator, teachers, labels) for one, accumulator in pairs)

  def finish(accumulators):
    return tuple(one.finish(accumulator) for one, accumulator in zip(present, accumulators, strict=True))

  return Reduction(frozenset().union(*(one.reads for one in present)), init, update, finish)


def for_each_teacher(reduction: Reduction) -> Reduction:
  """The reduction of each teacher alone; the statistics are a tuple, one entry a teacher."""

  def init(teachers, labels):
    return tuple(reduction.init((teacher,), labels) for teacher in teachers)

  def update(accumulators, teachers, labels):
    pairs = zip(accumulators, teachers, strict=True)
    return tuple(reduction.update(accumulator, (teacher,), labels) for accumulator, teacher in pairs)

  def finish(accumulators):
    return tuple(map(reduction.finish, accumulators))

  return Reduction(reduction.reads, init, update, finish)


def map_teachers(reduction: Reduction, transform: Callable[[Teachers], Teachers]) -> Reduction:
  """The reduction of transformed outputs."""

  def init(teachers, labels):
    return reduction.init(jax.eval_shape(transform, teachers), labels)

  def update(accumulator, teachers, labels):
    return reduction.update(accumulator, transform(teachers), labels)

  return reduction._replace(init=init, update=update)


def _init_nothing(teachers: Teachers, labels: Any) -> tuple[()]:
  del teachers, labels
  return ()


def _keep(accumulator: Any, *unused: Any) -> Any:
  del unused
  return accumulator
