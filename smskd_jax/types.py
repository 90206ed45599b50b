"""The records that travel through the program. NamedTuples only; imports nothing of ours.

Letters for dimensions, used in every docstring: b batch, k classes, h w c feature map (NHWC), d embedding,
n training-set size, m negatives.
"""

from typing import Any, NamedTuple

import jax


class Head(NamedTuple):
  """The classifier, as far as it is linear: logits = pooled @ kernel + bias."""

  kernel: jax.Array  # [d, k]
  bias: jax.Array  # [k]


class FrozenHead(Head):
  """A classifier that a network has taken over from another and never trains."""


class Norm(NamedTuple):
  """The scale and offset of the batch norm that a map before its activation comes from."""

  scale: jax.Array  # [c]
  bias: jax.Array  # [c]


class Outputs(NamedTuple):
  """All that a network says about one batch. XLA drops what no loss reads.

  The last four are not needed by most methods: a network may leave them out, and a method that needs one says so.
  """

  logits: jax.Array  # [b, k]
  embedding: jax.Array  # [b, d], what the classifier sees
  features: tuple[jax.Array, ...]  # each [b, h, w, c], after the activation, stem first
  preactivations: tuple[jax.Array, ...]  # the same taps before it
  final_map: jax.Array | None = None  # [b, h, w, d], the map that `pooled` is the mean of
  head: Head | None = None
  norms: tuple[Norm | None, ...] = ()  # one a tap; None where its map does not come from a batch norm
  peer_outputs: tuple["Outputs", ...] = ()  # of a cohort: what the networks that train beside this one say
  view_outputs: tuple[
    "Outputs", ...
  ] = ()  # for methods that need a stage's views apart: what it says of the others


class Batch(NamedTuple):
  """One batch of training examples."""

  image: jax.Array  # [b, h, w, c]; uint8 as stored, until the step makes a view of it
  label: jax.Array  # [b], int32; -1 where an image has none
  index: jax.Array  # type: ignore[assignment]  # [b], int32, position in the training set (hides tuple.index)


class MethodVariables(NamedTuple):
  """What a method brings along besides the networks."""

  params: Any = ()  # learns with the learner: regressors, embeddings
  state: Any = ()  # remembers: memory banks


class TrainState(NamedTuple):
  """Everything a step changes, and so exactly what a checkpoint holds."""

  step: jax.Array  # [], int32
  params: Any  # {'learner': ..., 'aux': one entry a method}
  model_state: Any  # the learner's other collections: batch statistics
  method_state: Any  # one entry a method
  opt_state: Any
  ema: Any = ()  # the moving average of the learner's variables, where the stage asks for one


class CachedOutputs(NamedTuple):
  """What a frozen network says of every view of every image of a stage, in the place of its variables."""

  row_index: jax.Array  # [n], int32: where an image of the training set is in the others; 0 where it is not
  logits: jax.Array  # [m, v, k], of m images and v views of each
  embedding: jax.Array | None = None  # [m, v, d], where a method asks for it


class Frozen(NamedTuple):
  """Everything a stage reads and never writes. An argument of the step, never donated, never differentiated."""

  key: jax.Array  # the stage's random key; step i uses fold_in(key, i)
  teachers: tuple[Any, ...]  # their variables or what is `Kept` of them, in the order of the stage's networks
  reference: Any = None  # the anchor's variables; None where the stage has none
