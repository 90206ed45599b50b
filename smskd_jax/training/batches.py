"""Which images a stage sees, and in which order: drawn from its key alone, so that any step can be the first."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from smskd_jax.data import holdout
from smskd_jax.data.dataset import Split
from smskd_jax.state import Batch
from smskd_jax.training.task import ABSENT

UNLABELED = 2**32 - 1  # the stream of the key that orders images without labels: no epoch has this number


class Images(NamedTuple):
  """Images in memory, and those among them that are drawn."""

  image: np.ndarray  # [n, h, w, c], uint8
  label: np.ndarray  # [n], int32; -1 where there is none
  rows: np.ndarray  # [m], int32
  first_index: int = 0  # an image's index in its batch is its row and this


def labeled(split: Split, max_images: int = 0, seed: int = 0) -> Images:
  """A training set, or a part of it that keeps the proportions of the classes.

  Args:
    split: the whole set; an image's index is its place there.
    max_images: how many to draw, rounded class by class; 0 for all.
    seed: which ones.

  Raises:
    ValueError: there are not so many images, or a class would have none.
  """
  rows = _some(split.label, max_images, seed)
  missing = np.setdiff1d(split.label, split.label[rows])
  if len(missing):
    raise ValueError(
      f"max_images: {max_images} leaves class {missing[0]} without an image; take more, or 0 for all"
    )
  return Images(split.image, split.label, rows)


def unlabeled(image: np.ndarray, first_index: int, max_images: int = 0, seed: int = 0) -> Images:
  """Images without labels, or some of them.

  Args:
    image: [n, h, w, c].
    first_index: of the first: behind the training set.
    max_images: how many to draw; 0 for all.
    seed: which ones.

  Raises:
    ValueError: there are not so many images.
  """
  label = np.full(len(image), ABSENT, np.int32)
  return Images(image, label, _some(label, max_images, seed), first_index)


def _some(label: np.ndarray, count: int, seed: int) -> np.ndarray:
  if count > len(label):
    raise ValueError(f"max_images: {count}, but there are only {len(label)}; 0 means all")
  drawn = holdout.stratified(label, count / len(label), seed) if count else np.ones(len(label), bool)
  return np.flatnonzero(drawn).astype(np.int32)


class Drawing(NamedTuple):
  """What the batches of a stage are drawn from."""

  images: Images
  batch_size: int
  epochs: int
  steps_per_epoch: int  # an epoch's last images, fewer than a batch, are left out
  beside: Images | None = None  # images without labels, behind those of each batch
  beside_batch_size: int = 0

  @property
  def images_per_step(self) -> int:
    """Of both kinds."""
    return self.batch_size + (self.beside_batch_size if self.beside is not None else 0)


def draw(drawing: Drawing, key: jax.Array, first: int) -> Iterator[Batch]:
  """Batches of arrays of the host, from step `first` on. Each epoch has an order of its own, drawn from the key."""
  of_labeled = _of_one_kind(drawing, drawing.images, drawing.batch_size, key, first)
  if drawing.beside is None:
    yield from of_labeled
    return
  of_key = jax.random.fold_in(key, UNLABELED)
  others = _of_one_kind(drawing, drawing.beside, drawing.beside_batch_size, of_key, first)
  for pair in zip(of_labeled, others, strict=True):
    yield Batch(*(np.concatenate(arrays) for arrays in zip(*pair, strict=True)))  # type: ignore[arg-type]


def draw_rows(drawing: Drawing, key: jax.Array, first: int = 0) -> Iterator[np.ndarray]:
  """Which images the batches of `draw` hold, without those beside them: each [b], int32."""
  yield from _rows(drawing, drawing.images, drawing.batch_size, key, first)


def _of_one_kind(
  drawing: Drawing, images: Images, batch_size: int, key: jax.Array, first: int
) -> Iterator[Batch]:
  for rows in _rows(drawing, images, batch_size, key, first):
    index = (rows + images.first_index).astype(np.int32)
    yield Batch(images.image[rows], images.label[rows], index)  # type: ignore[arg-type]  # host arrays


def _rows(
  drawing: Drawing, images: Images, batch_size: int, key: jax.Array, first: int
) -> Iterator[np.ndarray]:
  """Where an epoch has more steps than the images suffice for, they come again in another order."""
  steps = drawing.steps_per_epoch
  needed = steps * batch_size
  for epoch in range(first // steps, drawing.epochs):
    of_epoch, rounds = jax.random.fold_in(key, epoch), -(-needed // len(images.rows))
    keys = [of_epoch, *(jax.random.fold_in(of_epoch, i) for i in range(1, rounds))]
    drawn = np.concatenate([np.asarray(jax.random.permutation(k, len(images.rows))) for k in keys])
    order = images.rows[drawn[:needed]].reshape(steps, batch_size)
    yield from order[max(0, first - epoch * steps) :]
