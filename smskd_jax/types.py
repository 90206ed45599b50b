"""Records that the folders of the package exchange. Imports nothing of ours.

Letters for dimensions, used in every docstring: b batch, k classes, h w c feature map (NHWC), d embedding,
n training-set size, m negatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

SegmentFn = Callable[[jax.Array], jax.Array]  # part of a network, from one feature layer to the next


class Head(NamedTuple):
  """A linear classifier: logits = embedding @ kernel + bias."""

  kernel: jax.Array  # [d, k]
  bias: jax.Array  # [k]


class FrozenHead(Head):
  """A classifier that was copied from another network and is never trained."""


class Norm(NamedTuple):
  """Scale and offset of the batch norm whose output is a feature layer before its activation."""

  scale: jax.Array  # [c]
  bias: jax.Array  # [c]


class Outputs(NamedTuple):
  """Outputs of a network for one batch. XLA drops outputs that no loss reads.

  A network may leave out the outputs that have a default; a method that needs one of them declares and checks it.
  """

  logits: jax.Array  # [b, k]
  embedding: jax.Array  # [b, d], input of the classifier
  features: tuple[jax.Array, ...]  # feature layers, each [b, h, w, c], after the activation, stem first
  preactivations: tuple[jax.Array, ...]  # the same layers before the activation
  final_map: jax.Array | None = None  # [b, h, w, d]; `embedding` is its mean over positions
  head: Head | None = None
  norms: tuple[
    Norm | None, ...
  ] = ()  # one a feature layer; None where a layer is not the output of a batch norm
  peer_outputs: tuple["Outputs", ...] = ()  # of the other members of a cohort
  view_outputs: tuple["Outputs", ...] = ()  # for the other views of a stage, for methods that relate views


class Batch(NamedTuple):
  """One batch of training examples."""

  image: jax.Array  # [b, h, w, c]; uint8 as stored, until the step makes a view of it
  label: jax.Array  # [b], int32; -1 for an image without a label
  index: jax.Array  # type: ignore[assignment]  # [b], int32, position in the training set (hides tuple.index)


class Segments(NamedTuple):
  """Networks cut at their feature layers, and the images of a view.

  A network of n feature layers has n + 2 segments: from the images to the first feature layer, from each feature layer
  to the next, from the last to the embedding, and from the embedding to the logits. Variables are constants, and batch
  norm uses its running statistics.
  """

  image: jax.Array  # [b, h, w, c]
  student: tuple[SegmentFn, ...]
  teachers: tuple[tuple[SegmentFn, ...], ...]


class MethodVariables(NamedTuple):
  """Variables of a method besides those of the networks."""

  params: Any = ()  # trained with the student: regressors, embeddings
  state: Any = ()  # updated by the method, not by gradients: memory banks, running statistics


class TrainState(NamedTuple):
  """All that a training step changes, which is all that a checkpoint stores."""

  step: jax.Array  # [], int32
  params: Any  # trained parameters: those of the network, and one entry a method
  model_state: Any  # the network's other collections: batch statistics
  method_state: Any  # one entry a method
  opt_state: Any
  ema: Any = ()  # exponential moving average of the network's variables, if the stage has one


class CachedOutputs(NamedTuple):
  """Stored outputs of a frozen network for all views and images of a stage."""

  row_index: jax.Array  # [n], int32: row of a training image in the arrays below; 0 for images without a row
  logits: jax.Array  # [m, v, k], of m images and v views of each
  embedding: jax.Array | None = None  # [m, v, d], if a method reads it


class Frozen(NamedTuple):
  """All that a stage reads and never writes; never donated, never differentiated."""

  key: jax.Array  # the stage's random key; step i uses fold_in(key, i)
  teachers: tuple[Any, ...]  # variables or `CachedOutputs`, in the order of the stage's teachers
  reference: Any = None  # variables of the reference; None without a reference
