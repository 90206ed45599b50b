"""Batches of a stage, as functions of a random key and a step.

The step number alone determines the position in the data, so that training can resume at any step.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import numpy as np

from smskd_jax.data import dataset, host_rng, prefetch
from smskd_jax.data.dataset import Split
from smskd_jax.data.lazy_images import LazyImages
from smskd_jax.training.targets import IGNORE_LABEL
from smskd_jax.types import Batch

RNG_UNLABELED = 2**32 - 1  # folded into the key for the order of unlabeled images; greater than any epoch


class ImageSubset(NamedTuple):
  """Images, and the indices of those that are used."""

  image: dataset.ImageArray  # [n, h, w, c]
  label: np.ndarray  # [n], int32; -1 for images without a label
  indices: np.ndarray  # [m], int32, into `image`
  first_index: int = 0  # `Batch.index` of an image is its index in `image` plus this number


def labeled_subset(split: Split, max_images: int = 0, seed: int = 0) -> ImageSubset:
  """A training set, or a random part of it that keeps the proportions of the classes.

  Args:
    split: the whole training set; `Batch.index` refers to it.
    max_images: size of the part, rounded for each class; 0: all images.
    seed: of the part.

  Raises:
    ValueError: the set has fewer images, or a class would have none.
  """
  indices = _sample_indices(split.label, max_images, seed)
  missing = np.setdiff1d(split.label, split.label[indices])
  if len(missing):
    raise ValueError(
      f"max_images: {max_images} leaves class {missing[0]} without an image; take more, or 0 for all"
    )
  return ImageSubset(split.image, split.label, indices)


def unlabeled_subset(
  image: dataset.ImageArray, first_index: int, max_images: int = 0, seed: int = 0
) -> ImageSubset:
  """Images without labels, or a random part of them.

  Args:
    image: [n, h, w, c].
    first_index: `Batch.index` of the first image: the size of the training set.
    max_images: size of the part; 0: all images.
    seed: of the part.

  Raises:
    ValueError: there are fewer images.
  """
  label = np.full(len(image), IGNORE_LABEL, np.int32)
  return ImageSubset(image, label, _sample_indices(label, max_images, seed), first_index)


def _sample_indices(label: np.ndarray, count: int, seed: int) -> np.ndarray:
  if count > len(label):
    raise ValueError(f"max_images: {count}, but there are only {len(label)}; 0 means all")
  mask = dataset.stratified_mask(label, count / len(label), seed) if count else np.ones(len(label), bool)
  return np.flatnonzero(mask).astype(np.int32)


class InputSpec(NamedTuple):
  """Images and sizes from which the batches of a stage are made."""

  images: ImageSubset
  batch_size: int
  epochs: int
  steps_per_epoch: int  # images of an epoch that do not fill a batch are dropped
  unlabeled: ImageSubset | None = None  # they follow the labeled images in each batch
  unlabeled_batch_size: int = 0
  num_workers: int = 0  # processes that decode image files; 0: threads

  @property
  def images_per_step(self) -> int:
    """Images of a batch, labeled and unlabeled."""
    return self.batch_size + (self.unlabeled_batch_size if self.unlabeled is not None else 0)


def iterate_batches(
  input_spec: InputSpec, key: jax.Array, first_step: int, local_indices: np.ndarray | None = None
) -> Iterator[Batch]:
  """Yields the batches from a step on, as arrays on the host. Each epoch has a new order.

  Args:
    input_spec: images and sizes.
    key: random key of the order.
    first_step: step of the first batch.
    local_indices: positions in each global batch of the images that this process trains on; None: all. Only these
      images are read.
  """
  local = np.arange(input_spec.images_per_step) if local_indices is None else local_indices
  is_labeled = local < input_spec.batch_size
  steps = range(first_step, input_spec.epochs * input_spec.steps_per_epoch)
  labeled = _iterate_subset(
    input_spec.images, _labeled_shuffler(input_spec, key), local[is_labeled], steps, input_spec.num_workers
  )
  if input_spec.unlabeled is None:
    yield from labeled
    return
  shuffler = _unlabeled_shuffler(input_spec, input_spec.unlabeled, key)
  positions = local[~is_labeled] - input_spec.batch_size
  unlabeled = _iterate_subset(input_spec.unlabeled, shuffler, positions, steps, input_spec.num_workers)
  for pair in zip(labeled, unlabeled, strict=True):
    yield Batch(*(np.concatenate(arrays) for arrays in zip(*pair, strict=True)))  # type: ignore[arg-type]


def iterate_indices(input_spec: InputSpec, key: jax.Array, first_step: int = 0) -> Iterator[np.ndarray]:
  """Yields the indices of the labeled images of each batch of `iterate_batches`: [b], int32."""
  shuffler = _labeled_shuffler(input_spec, key)
  for step in range(first_step, input_spec.epochs * input_spec.steps_per_epoch):
    yield shuffler.batch_indices(step)


class EpochShuffler:
  """Order of a subset's images in each epoch.

  An epoch with more steps than the images fill repeats them, in another order for each repeat.
  """

  def __init__(self, indices: np.ndarray, seed: int, batch_size: int, steps_per_epoch: int):
    """Takes the indices to shuffle, [m], int32, and the seed of all orders."""
    self._indices, self.seed, self._batch_size, self._steps = indices, seed, batch_size, steps_per_epoch
    self._orders: dict[int, np.ndarray] = {}  # by epoch; two, because threads may be in adjacent epochs

  def batch_indices(self, step: int) -> np.ndarray:
    """Indices of the images of a step: [batch_size], int32."""
    epoch, within = divmod(step, self._steps)
    return self._indices[self._epoch_order(epoch)[within * self._batch_size :][: self._batch_size]]

  def repeat_ids(self, step: int) -> list[tuple[int, int]]:
    """(epoch, repeat within the epoch) of each image of a step."""
    epoch, within = divmod(step, self._steps)
    first = within * self._batch_size
    return [(epoch, position // len(self._indices)) for position in range(first, first + self._batch_size)]

  def _epoch_order(self, epoch: int) -> np.ndarray:
    orders = self._orders
    if epoch not in orders:
      needed, count = self._steps * self._batch_size, len(self._indices)
      repeats = [
        host_rng.permutation(self.seed, host_rng.SHUFFLE_STREAM, (epoch, repeat, 0), count)
        for repeat in range(-(-needed // count))
      ]
      previous = {e: order for e, order in orders.items() if e == epoch - 1}
      self._orders = orders = previous | {epoch: np.concatenate(repeats)}  # replaced at once: threads read it
    return orders[epoch][: self._steps * self._batch_size]


def _labeled_shuffler(input_spec: InputSpec, key: jax.Array) -> EpochShuffler:
  return EpochShuffler(
    input_spec.images.indices, _host_seed(key), input_spec.batch_size, input_spec.steps_per_epoch
  )


def _unlabeled_shuffler(input_spec: InputSpec, unlabeled: ImageSubset, key: jax.Array) -> EpochShuffler:
  seed = _host_seed(jax.random.fold_in(key, RNG_UNLABELED))
  return EpochShuffler(unlabeled.indices, seed, input_spec.unlabeled_batch_size, input_spec.steps_per_epoch)


def _host_seed(key: jax.Array) -> int:
  """First 64 bits of a key, as the seed of random numbers on the host."""
  return int.from_bytes(np.asarray(jax.random.key_data(key)).astype("<u4").tobytes()[:8], "little")


def _iterate_subset(
  images: ImageSubset, shuffler: EpochShuffler, local_indices: np.ndarray, steps: range, num_workers: int
) -> Iterator[Batch]:
  arrays = _iterate_images(images.image, shuffler, local_indices, steps, num_workers)
  for step, image in zip(steps, arrays, strict=True):
    indices = shuffler.batch_indices(step)[local_indices]
    index = (indices + images.first_index).astype(np.int32)
    yield Batch(image, images.label[indices], index)  # type: ignore[arg-type]  # arrays on the host


def _iterate_images(
  image: dataset.ImageArray,
  shuffler: EpochShuffler,
  local_indices: np.ndarray,
  steps: range,
  num_workers: int,
) -> Iterator[np.ndarray]:
  """Images of each step, [local b, h, w, c]; image files are decoded ahead, as random crops."""
  if isinstance(image, LazyImages):
    read = functools.partial(_read_random_crops, image, shuffler, local_indices)
    yield from prefetch.prefetch(read, steps.start, steps.stop, num_workers=num_workers)
  else:
    yield from (image[shuffler.batch_indices(step)[local_indices]] for step in steps)


def _read_random_crops(
  images: LazyImages, shuffler: EpochShuffler, local_indices: np.ndarray, step: int
) -> np.ndarray:
  repeat_ids = shuffler.repeat_ids(step)
  return images.random_resized_crops(
    shuffler.batch_indices(step)[local_indices], shuffler.seed, [repeat_ids[i] for i in local_indices]
  )
