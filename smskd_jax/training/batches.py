"""Which images a stage sees, and in which order: drawn from its key alone, so that any step can be the first.

A step's number is all that is to be known of where a stage is in its data: it is in every checkpoint.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import numpy as np

from smskd_jax.data import ahead, dataset, holdout, philox
from smskd_jax.data.dataset import Split
from smskd_jax.data.photographs import Photographs
from smskd_jax.state import Batch
from smskd_jax.training.task import ABSENT

UNLABELED = 2**32 - 1  # the stream of the key that orders images without labels: no epoch has this number


class Images(NamedTuple):
  """Images, and those among them that are drawn."""

  image: dataset.Images  # [n, h, w, c]
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


def unlabeled(image: dataset.Images, first_index: int, max_images: int = 0, seed: int = 0) -> Images:
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
  workers: int = 0  # processes that decode photographs; 0: threads

  @property
  def images_per_step(self) -> int:
    """Of both kinds."""
    return self.batch_size + (self.beside_batch_size if self.beside is not None else 0)


def draw(drawing: Drawing, key: jax.Array, first: int, own: np.ndarray | None = None) -> Iterator[Batch]:
  """Batches of arrays of the host, from step `first` on. Each epoch has an order of its own, drawn from the key.

  Args:
    drawing: what they are drawn from.
    key: of the order.
    first: the first step.
    own: the places in each batch of what this process trains on, as it alone is read; None for all.
  """
  own = np.arange(drawing.images_per_step) if own is None else own
  among, behind = own[own < drawing.batch_size], own[own >= drawing.batch_size] - drawing.batch_size
  end, workers = drawing.epochs * drawing.steps_per_epoch, drawing.workers
  of_labeled = _of_one_kind(drawing.images, _order(drawing, key), among, range(first, end), workers)
  if drawing.beside is None:
    yield from of_labeled
    return
  order = _order_beside(drawing, drawing.beside, key)
  others = _of_one_kind(drawing.beside, order, behind, range(first, end), workers)
  for pair in zip(of_labeled, others, strict=True):
    yield Batch(*(np.concatenate(arrays) for arrays in zip(*pair, strict=True)))  # type: ignore[arg-type]


def draw_rows(drawing: Drawing, key: jax.Array, first: int = 0) -> Iterator[np.ndarray]:
  """Which images the batches of `draw` hold, without those beside them: each [b], int32."""
  order = _order(drawing, key)
  yield from (order.rows_of(step) for step in range(first, drawing.epochs * drawing.steps_per_epoch))


class Order:
  """The order of a stage's images. Where an epoch has more steps than they suffice for, they come again in another."""

  def __init__(self, rows: np.ndarray, seed: int, batch_size: int, steps_per_epoch: int):
    """Takes the rows that are drawn, [m], int32, and what they are drawn by."""
    self._rows, self.seed, self._batch_size, self._steps = rows, seed, batch_size, steps_per_epoch
    self._known: dict[
      int, np.ndarray
    ] = {}  # by epoch: this one and, where several threads ask, the one before

  def rows_of(self, step: int) -> np.ndarray:
    """The rows of a step: [batch_size], int32."""
    epoch, within = divmod(step, self._steps)
    return self._rows[self._of_epoch(epoch)[within * self._batch_size :][: self._batch_size]]

  def visits_of(self, step: int) -> list[tuple[int, int]]:
    """Of each of them, the epoch and which time it comes in it."""
    epoch, within = divmod(step, self._steps)
    first = within * self._batch_size
    return [(epoch, place // len(self._rows)) for place in range(first, first + self._batch_size)]

  def _of_epoch(self, epoch: int) -> np.ndarray:
    known = self._known
    if epoch not in known:
      needed, count = self._steps * self._batch_size, len(self._rows)
      places = [(epoch, turn, 0) for turn in range(-(-needed // count))]
      drawn = [philox.permutation(self.seed, philox.ORDER, place, count) for place in places]
      known = {e: order for e, order in known.items() if e == epoch - 1} | {epoch: np.concatenate(drawn)}
      self._known = known
    return known[epoch][: self._steps * self._batch_size]


def _order(drawing: Drawing, key: jax.Array) -> Order:
  return Order(drawing.images.rows, _seed(key), drawing.batch_size, drawing.steps_per_epoch)


def _order_beside(drawing: Drawing, beside: Images, key: jax.Array) -> Order:
  seed = _seed(jax.random.fold_in(key, UNLABELED))
  return Order(beside.rows, seed, drawing.beside_batch_size, drawing.steps_per_epoch)


def _seed(key: jax.Array) -> int:
  """64 bits of a key, for what is drawn on the host."""
  return int.from_bytes(np.asarray(jax.random.key_data(key)).astype("<u4").tobytes()[:8], "little")


def _of_one_kind(
  images: Images, order: Order, own: np.ndarray, steps: range, workers: int
) -> Iterator[Batch]:
  for step, image in zip(steps, _read(images.image, order, own, steps, workers), strict=True):
    rows = order.rows_of(step)[own]
    index = (rows + images.first_index).astype(np.int32)
    yield Batch(image, images.label[rows], index)  # type: ignore[arg-type]  # host arrays


def _read(
  image: dataset.Images, order: Order, own: np.ndarray, steps: range, workers: int
) -> Iterator[np.ndarray]:
  """The images of each step, [own, h, w, c]; of photographs random parts, which others decode before they are due."""
  if isinstance(image, Photographs):
    of_step = functools.partial(_random_parts, image, order, own)
    yield from ahead.ahead(of_step, steps.start, steps.stop, workers=workers)
  else:
    yield from (image[order.rows_of(step)[own]] for step in steps)


def _random_parts(photographs: Photographs, order: Order, own: np.ndarray, step: int) -> np.ndarray:
  visits = order.visits_of(step)
  return photographs.random_parts(order.rows_of(step)[own], order.seed, [visits[place] for place in own])
