"""Statistics of the training set for a stage's methods, in one pass of its teachers.

`smskd_jax/losses/reduction.py` has the reductions. A stage computes all of them in one pass, before its first step:

  statistics = compute_statistics(stage, teachers, image, label)
  state = init_state(stage, key, variables, teachers, image[:1], label, statistics=statistics)
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.losses import reduction
from smskd_jax.losses.reduction import Reduction
from smskd_jax.training.stage import Stage, frozen_outputs, output_spec
from smskd_jax.types import Outputs

# (teachers' variables, images [b, h, w, c]) -> outputs of each teacher
ForwardFn = Callable[[Sequence[Any], jax.Array], tuple[Outputs, ...]]


def stage_reduction(stage: Stage) -> Reduction | None:
  """The reduction of all terms of a stage; None if no method needs statistics.

  Its result is a tuple with one entry a term, () where the method needs none.
  """
  reductions = [term.method.statistics for term in stage.terms]
  return reduction.join(reductions) if any(reductions) else None


def make_forward(
  networks: Sequence[nn.Module],
  reads: frozenset[str],
  normalize: Callable[[jax.Array], jax.Array] = lambda image: image,
) -> ForwardFn:
  """Makes the pure function that computes the outputs of teachers which a reduction reads.

  The teachers are in evaluation mode, by their running statistics. Outputs that are not in `reads` are ().
  """
  unread: dict[str, Any] = {name: () for name in Outputs._fields if name not in reads}

  def forward(teachers: Sequence[Any], image: jax.Array) -> tuple[Outputs, ...]:
    image = normalize(image)
    pairs = zip(networks, teachers, strict=True)
    return tuple(frozen_outputs(network, variables, image)._replace(**unread) for network, variables in pairs)

  return forward


def accumulate(
  stage: Stage,
  teachers: Sequence[Any],
  image: Any,
  labels: np.ndarray,
  predict: Callable[[np.ndarray], tuple[Outputs, ...]],
  batch_size: int,
) -> tuple[Any, ...]:
  """Statistics of a stage, accumulated from its teachers' outputs batch by batch.

  Args:
    stage: the stage.
    teachers: the teachers' variables, arrays or shapes.
    image: an input of the networks, [b, h, w, c], an array or a shape.
    labels: [n], int32, of the images of the pass.
    predict: indices [batch_size] of images of the pass -> outputs of each teacher, as `make_forward` computes them.
    batch_size: images of a call; the last one is filled with the first images.

  Returns:
    One entry a term; () without statistics.

  Raises:
    ValueError: statistics are not defined for these networks and labels.
  """
  joined = stage_reduction(stage)
  if joined is None:
    return ()
  accumulator = joined.init(_teacher_specs(stage, teachers, image), labels)
  update, count = jax.jit(joined.update, donate_argnums=0), len(labels)
  for start in range(0, count, batch_size):
    index = np.arange(start, start + batch_size)
    outputs = predict(index % count)
    new = min(batch_size, count - start)
    outputs = jax.tree.map(lambda x, new=new: x[:new], outputs)
    accumulator = update(accumulator, outputs, labels[start : start + new])
  return jax.jit(joined.finish)(accumulator)


def compute_statistics(
  stage: Stage, teachers: Sequence[Any], image: Any, labels: Any, *, batch_size: int = 256
) -> tuple[Any, ...]:
  """Statistics of a stage, computed on one device from images in memory.

  Args:
    stage: the stage.
    teachers: the teachers' variables.
    image: all training images, [n, h, w, c], without augmentation, as the networks take them.
    labels: [n], int32.
    batch_size: images of a forward pass.

  Returns:
    The argument `statistics` of `init_state`.

  Raises:
    ValueError: statistics are not defined for these networks and labels.
  """
  labels, image, joined = np.asarray(labels), np.asarray(image), stage_reduction(stage)
  forward = jax.jit(make_forward(stage.teachers, joined.reads if joined else frozenset()))

  def predict(index: np.ndarray) -> tuple[Outputs, ...]:
    return forward(tuple(teachers), image[index])

  return accumulate(stage, teachers, image, labels, predict, min(batch_size, len(labels)))


def statistics_spec(stage: Stage, teachers: Sequence[Any], image: Any, labels: np.ndarray) -> tuple[Any, ...]:
  """Shapes of the statistics of a stage; the arguments are those of `accumulate`."""
  joined = stage_reduction(stage)
  if joined is None:
    return ()
  shapes: tuple[Any, ...] = reduction.statistics_shapes(
    joined, _teacher_specs(stage, teachers, image), labels
  )
  return shapes


def check_given(stage: Stage, statistics: tuple[Any, ...]) -> tuple[Any, ...]:
  """The statistics of a stage, one entry a term.

  Raises:
    ValueError: there is not one entry a term, though a method needs statistics.
  """
  names = [term.name for term in stage.terms if term.method.statistics is not None]
  if not names:
    return ((),) * len(stage.terms)
  if len(statistics) != len(stage.terms):
    raise ValueError(
      f"{names[0]}: needs statistics of the training set, one entry for each of {len(stage.terms)} terms, got "
      f"{len(statistics)}; pass statistics=compute_statistics(stage, teachers, image, labels)"
    )
  return statistics


def _teacher_specs(stage: Stage, teachers: Sequence[Any], image: Any) -> tuple[Outputs, ...]:
  return tuple(output_spec(n, v, image) for n, v in zip(stage.teachers, teachers, strict=True))
