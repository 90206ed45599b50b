"""Which images a stage sees, and in which order: drawn from its key alone, so that any step can be the first.

A step's number is all that is to be known of where a stage is in its data: it is in every checkpoint.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import numpy as np

from smskd_jax.data import dataset, host_rng, prefetch, splits
from smskd_jax.data.dataset import Split
from smskd_jax.data.lazy_images import LazyImages
from smskd_jax.training.targets import IGNORE_LABEL
from smskd_jax.types import Batch

RNG_UNLABELED = 2**32 - 1  # the stream of the key that orders images without labels: no epoch has this number


class ImageSubset(NamedTuple):
  """Images, and those among them that are drawn."""

  image: dataset.ImageArray  # [n, h, w, c]
  label: np.ndarray  # [n], int32; -1 where there is none
  indices: np.ndarray  # [m], int32
  first_index: int = 0  # an image's index in its batch is its row and this


def labeled_subset(split: Split, max_images: int = 0, seed: int = 0) -> ImageSubset:
  """A training set, or a part of it that keeps the proportions of the classes.

  Args:
    split: the whole set; an image's index is its place there.
    max_images: how many to draw, rounded class by class; 0 for all.
    seed: which ones.

  Raises:
    ValueError: there are not so many images, or a class would have none.
  """
  rows = _sample_indices(split.label, max_images, seed)
  missing = np.setdiff1d(split.label, split.label[rows])
  if len(missing):
    raise ValueError(
      f"max_images: {max_images} leaves class {missing[0]} without an image; take more, or 0 for all"
    )
  return ImageSubset(split.image, split.label, rows)


def unlabeled_subset(
  image: dataset.ImageArray, first_index: int, max_images: int = 0, seed: int = 0
) -> ImageSubset:
  """Images without labels, or some of them.

  Args:
    image: [n, h, w, c].
    first_index: of the first: behind the training set.
    max_images: how many to draw; 0 for all.
    seed: which ones.

  Raises:
    ValueError: there are not so many images.
  """
  label = np.full(len(image), IGNORE_LABEL, np.int32)
  return ImageSubset(image, label, _sample_indices(label, max_images, seed), first_index)


def _sample_indices(label: np.ndarray, count: int, seed: int) -> np.ndarray:
  if count > len(label):
    raise ValueError(f"max_images: {count}, but there are only {len(label)}; 0 means all")
  drawn = splits.stratified_mask(label, count / len(label), seed) if count else np.ones(len(label), bool)
  return np.flatnonzero(drawn).astype(np.int32)


class InputSpec(NamedTuple):
  """What the batches of a stage are drawn from."""

  images: ImageSubset
  batch_size: int
  epochs: int
  steps_per_epoch: int  # an epoch's last images, fewer than a batch, are left out
  unlabeled: ImageSubset | None = None  # images without labels, behind those of each batch
  unlabeled_batch_size: int = 0
  num_workers: int = 0  # processes that decode photographs; 0: threads

  @property
  def images_per_step(self) -> int:
    """Of both kinds."""
    return self.batch_size + (self.unlabeled_batch_size if self.unlabeled is not None else 0)


def iterate_batches(
  input_spec: InputSpec, key: jax.Array, first_step: int, local_indices: np.ndarray | None = None
) -> Iterator[Batch]:
  """Batches of arrays of the host, from step `first` on. Each epoch has an order of its own, drawn from the key.

  Args:
    drawing: what they are drawn from.
    key: of the order.
    first: the first step.
    own: the places in each batch of what this process trains on, as it alone is read; None for all.
  """
  local_indices = np.arange(input_spec.images_per_step) if local_indices is None else local_indices
  among, behind = (
    local_indices[local_indices < input_spec.batch_size],
    local_indices[local_indices >= input_spec.batch_size] - input_spec.batch_size,
  )
  end, num_workers = input_spec.epochs * input_spec.steps_per_epoch, input_spec.num_workers
  of_labeled = _iterate_subset(
    input_spec.images, _labeled_shuffler(input_spec, key), among, range(first_step, end), num_workers
  )
  if input_spec.unlabeled is None:
    yield from of_labeled
    return
  order = _unlabeled_shuffler(input_spec, input_spec.unlabeled, key)
  others = _iterate_subset(input_spec.unlabeled, order, behind, range(first_step, end), num_workers)
  for pair in zip(of_labeled, others, strict=True):
    yield Batch(*(np.concatenate(arrays) for arrays in zip(*pair, strict=True)))  # type: ignore[arg-type]


def iterate_indices(input_spec: InputSpec, key: jax.Array, first_step: int = 0) -> Iterator[np.ndarray]:
  """Which images the batches of `draw` hold, without those beside them: each [b], int32."""
  order = _labeled_shuffler(input_spec, key)
  yield from (
    order.batch_indices(step) for step in range(first_step, input_spec.epochs * input_spec.steps_per_epoch)
  )


class EpochShuffler:
  """The order of a stage's images. Where an epoch has more steps than they suffice for, they come again in another."""

  def __init__(self, indices: np.ndarray, seed: int, batch_size: int, steps_per_epoch: int):
    """Takes the rows that are drawn, [m], int32, and what they are drawn by."""
    self._indices, self.seed, self._batch_size, self._steps = indices, seed, batch_size, steps_per_epoch
    self._cache: dict[
      int, np.ndarray
    ] = {}  # by epoch: this one and, where several threads ask, the one before

  def batch_indices(self, step: int) -> np.ndarray:
    """The rows of a step: [batch_size], int32."""
    epoch, within = divmod(step, self._steps)
    return self._indices[self._epoch_order(epoch)[within * self._batch_size :][: self._batch_size]]

  def repeat_ids(self, step: int) -> list[tuple[int, int]]:
    """Of each of them, the epoch and which time it comes in it."""
    epoch, within = divmod(step, self._steps)
    first = within * self._batch_size
    return [(epoch, place // len(self._indices)) for place in range(first, first + self._batch_size)]

  def _epoch_order(self, epoch: int) -> np.ndarray:
    known = self._cache
    if epoch not in known:
      needed, count = self._steps * self._batch_size, len(self._indices)
      places = [(epoch, turn, 0) for turn in range(-(-needed // count))]
      drawn = [host_rng.permutation(self.seed, host_rng.SHUFFLE_STREAM, place, count) for place in places]
      known = {e: order for e, order in known.items() if e == epoch - 1} | {epoch: np.concatenate(drawn)}
      self._cache = known
    return known[epoch][: self._steps * self._batch_size]


def _labeled_shuffler(input_spec: InputSpec, key: jax.Array) -> EpochShuffler:
  return EpochShuffler(
    input_spec.images.indices, _host_seed(key), input_spec.batch_size, input_spec.steps_per_epoch
  )


def _unlabeled_shuffler(input_spec: InputSpec, unlabeled: ImageSubset, key: jax.Array) -> EpochShuffler:
  seed = _host_seed(jax.random.fold_in(key, RNG_UNLABELED))
  return EpochShuffler(unlabeled.indices, seed, input_spec.unlabeled_batch_size, input_spec.steps_per_epoch)


def _host_seed(key: jax.Array) -> int:
  """64 bits of a key, for what is drawn on the host."""
  return int.from_bytes(np.asarray(jax.random.key_data(key)).astype("<u4").tobytes()[:8], "little")


def _iterate_subset(
  images: ImageSubset, shuffler: EpochShuffler, local_indices: np.ndarray, steps: range, num_workers: int
) -> Iterator[Batch]:
  for step, image in zip(
    steps, _iterate_images(images.image, shuffler, local_indices, steps, num_workers), strict=True
  ):
    rows = shuffler.batch_indices(step)[local_indices]
    index = (rows + images.first_index).astype(np.int32)
    yield Batch(image, images.label[rows], index)  # type: ignore[arg-type]  # host arrays


def _iterate_images(
  image: dataset.ImageArray,
  shuffler: EpochShuffler,
  local_indices: np.ndarray,
  steps: range,
  num_workers: int,
) -> Iterator[np.ndarray]:
  """The images of each step, [own, h, w, c]; of photographs random parts, which others decode before they are due."""
  if isinstance(image, LazyImages):
    of_step = functools.partial(_read_random_crops, image, shuffler, local_indices)
    yield from prefetch.prefetch(of_step, steps.start, steps.stop, num_workers=num_workers)
  else:
    yield from (image[shuffler.batch_indices(step)[local_indices]] for step in steps)


def _read_random_crops(
  photographs: LazyImages, shuffler: EpochShuffler, local_indices: np.ndarray, step: int
) -> np.ndarray:
  visits = shuffler.repeat_ids(step)
  return photographs.random_resized_crops(
    shuffler.batch_indices(step)[local_indices], shuffler.seed, [visits[place] for place in local_indices]
  )
