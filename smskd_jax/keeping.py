"""What a stage's teachers say of every view of its images: read from the store, or computed into it once."""

from collections.abc import Iterable, Iterator, Mapping
import functools
import hashlib
from pathlib import Path
import time
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import numpy as np

from smskd_jax import losses
from smskd_jax.build import finite_view
from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.data.finite import Finite
from smskd_jax.errors import UserError
from smskd_jax.models import spec
from smskd_jax.plan import Plan
from smskd_jax.runtime import checkpoint, console, parallel, store
from smskd_jax.state import Kept
from smskd_jax.training import kept


class Asked(NamedTuple):
  """What is kept, and what it cost to have it."""

  teachers: tuple[Kept, ...]  # on the host
  forward_passes: int  # 0 where all was in the store
  seconds: float


class Question(NamedTuple):
  """What is asked of each teacher."""

  views: Finite
  image: np.ndarray  # [n, h, w, c], the whole training set
  rows: np.ndarray  # [m], of the images that the stage trains on
  pooled: bool  # whether embeddings are asked for too
  dtype: np.dtype


def ask(
  plan: Plan,
  dataset: Dataset,
  devices: parallel.Devices,
  folder: Path,
  batch_size: int,
  stages: Iterable[Mapping[str, Any]] = (),
) -> Asked:
  """The answers of all teachers of a stage.

  They lie with the teacher in the store, and serve all stages, seeds and runs with the same images and views.

  Args:
    plan: the stage.
    dataset: its data.
    devices: to compute on.
    folder: the store's.
    batch_size: of the computation.
    stages: of the whole run, filled: where one of them will ask for embeddings, they are computed at once.
  """
  question, passes, began = _question(plan), 0, time.monotonic()
  asked_for = question._replace(pooled=question.pooled or any(_reads_embeddings(plan, one) for one in stages))
  teachers: list[Kept] = []
  for key, network in zip(plan.reads.teachers, plan.stage.teachers, strict=True):
    entry = store.Entry(folder, key)
    with entry.lock(waiting=console.say):
      places = _places(plan, dataset, key, entry.folder)
      where = next((place for place in places if (place / "done").is_file()), None)
      if where is None:
        where = places[0] if asked_for.pooled else places[-1]
        variables = parallel.replicate(checkpoint.load_variables(entry.final), devices)
        _compute(asked_for, network, variables, dataset, devices, batch_size, where)
        passes += question.views.total * len(question.rows)
    teachers.append(_read(where, question))
  return Asked(tuple(teachers), passes, time.monotonic() - began if passes else 0.0)


def check(plans: Iterable[Plan], dataset: Dataset, devices: parallel.Devices) -> None:
  """Checks, before anything is trained, that the devices have memory for what stages keep.

  Raises:
    UserError: the first stage whose teachers' answers are more than is free now.
  """
  free = parallel.free_bytes(devices)
  for plan in plans:
    if free is None or not plan.stage.number:
      continue
    question = _question(plan)
    numbers = sum(_numbers(network, question, dataset) for network in plan.stage.teachers)
    shown = f"{question.views.total} views of {len(question.rows):,} images"
    needed = numbers * question.dtype.itemsize
    if needed > free:
      raise UserError(
        f"config.stages[{plan.place}].teacher_cache: {shown} need {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
        "are free on a device; see each image in fewer views by augment={'crop_flip': {'views': ...}}, use 'float16', "
        "or 'off'"
      )


def _numbers(network: nn.Module, question: Question, dataset: Dataset) -> int:
  """How many numbers a teacher's answers are."""
  pooled = spec.outputs(network, dataset.image_shape).pooled.shape[-1] if question.pooled else 0
  return len(question.rows) * question.views.total * (len(dataset.class_names) + pooled)


def _question(plan: Plan) -> Question:
  entry, images = plan.config, plan.drawing.images
  pooled = _of_embeddings(entry)
  views = finite_view(f"config.stages[{plan.place}]", entry)
  return Question(views, images.image, images.rows, pooled, np.dtype(entry["teacher_cache"]))


def _reads_embeddings(plan: Plan, entry: Mapping[str, Any]) -> bool:
  """Whether a stage will ask the teachers of another for embeddings."""
  shared = set(entry["teachers"]) & set(plan.config["teachers"])
  return bool(shared) and entry["teacher_cache"] != "off" and _of_embeddings(entry)


def _of_embeddings(entry: Mapping[str, Any]) -> bool:
  return any(method["name"] in losses.OF_EMBEDDINGS for method in entry["methods"])


def _places(plan: Plan, dataset: Dataset, key: str, folder: Path) -> tuple[Path, ...]:
  """The folders that may hold what a teacher says: with embeddings, and where none are asked for, without.

  Their name says what the teacher's key does not: the views and, of variables that were given, what computes with them.
  """
  question, name = _question(plan), plan.config["views"][0]
  asked = (
    store.FORMAT,
    dataset.fingerprint,
    hashlib.sha256(question.rows.tobytes()).hexdigest(),
    name,
    sorted(plan.config["augment"].get(name, {}).items()),
    question.dtype.name,
    plan.description.get("given", {}).get(key),
  )
  digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
  # Answers with embeddings serve who asks for none.
  names = [f"views-{digest}-pooled"] + ([] if question.pooled else [f"views-{digest}"])
  return tuple(folder / name for name in names)


def _compute(
  question: Question,
  network: nn.Module,
  variables: Any,
  dataset: Dataset,
  devices: parallel.Devices,
  batch_size: int,
  where: Path,
) -> None:
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  say = parallel.compile_predict(kept.make_say(network, question.views, normalize, question.dtype), devices)
  images, views = len(question.rows), question.views.total
  bar = console.Progress(f"what a teacher says of {views} views", images * views, 0)
  where.mkdir(parents=True, exist_ok=True)
  files: list[np.memmap] = []
  for start, rows in _batches(question.rows, batch_size, len(devices)):
    image, count = question.image[rows], min(len(rows), images - start)
    for number in range(views):
      shown = (image, rows, np.full(len(rows), number, np.int32))
      said = [parallel.joined(x)[:count] for x in say(variables, parallel.split(shown, devices))]
      said = said[: 1 + question.pooled]
      files = files or [_create(where / name, images, views, x) for name, x in zip(FILES, said, strict=False)]
      for file, x in zip(files, said, strict=True):
        file[start : start + count, number] = x
      bar.advance(count)
  bar.close()
  for file in files:
    file.flush()
  (where / "done").touch()


FILES = ("logits.npy", "pooled.npy")


def _create(path: Path, images: int, views: int, said: np.ndarray) -> np.memmap:
  return np.lib.format.open_memmap(path, "w+", said.dtype, (images, views, said.shape[-1]))


def _batches(rows: np.ndarray, size: int, num_devices: int) -> Iterator[tuple[int, np.ndarray]]:
  """(the first, rows) in batches of one size; the last is filled up with the first row."""
  size = -(-min(size, len(rows)) // num_devices) * num_devices
  for start in range(0, len(rows), size):
    of_batch = rows[start : start + size]
    yield start, np.concatenate([of_batch, np.repeat(rows[:1], size - len(of_batch))])


def _read(where: Path, question: Question) -> Kept:
  row = np.zeros(len(question.image), np.int32)
  row[question.rows] = np.arange(len(question.rows), dtype=np.int32)
  logits, *pooled = (np.load(where / name, mmap_mode="r") for name in FILES[: 1 + question.pooled])
  return Kept(cast(jax.Array, row), cast(jax.Array, logits), pooled[0] if pooled else None)
