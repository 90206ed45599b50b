"""Cache of teacher outputs, filled before a stage for the views that the stage samples, once each.

The sampled views depend on the stage's key alone. A cache never costs more forward passes than it saves.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import hashlib
import itertools
from pathlib import Path
import time
from typing import Any, NamedTuple, cast

from flax import linen as nn
import jax
import numpy as np

from smskd_jax.build import finite_view
from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.data.finite import Finite
from smskd_jax.errors import UserError
from smskd_jax.losses.entries import make_method
from smskd_jax.models import spec
from smskd_jax.plan import Plan
from smskd_jax.runtime import checkpoint, console, interrupt, parallel, processes, store
from smskd_jax.runtime.table import Table
from smskd_jax.state import Kept
from smskd_jax.training import batches, kept
from smskd_jax.training import stage as stage_lib

SAVE_EVERY = 60.0  # seconds between marks of what has been computed: what an end without warning costs
NAMES = ("logits", "pooled")


class Asked(NamedTuple):
  """What is kept, and what it cost to have it."""

  teachers: tuple[Kept, ...]  # on the host, as files in memory: what others ask for later will be there too
  folders: tuple[Path, ...]  # of these files
  forward_passes: int  # 0 where all was in the store


class Question(NamedTuple):
  """What is asked of each teacher."""

  views: Finite
  image: np.ndarray  # [n, h, w, c], the whole training set
  rows: np.ndarray  # [m], of the images that the stage trains on
  pooled: bool  # whether embeddings are asked for too
  dtype: np.dtype

  @property
  def place(self) -> np.ndarray:
    """Where an image of the training set is in what is kept, [n], int32; 0 where it is not."""
    place = np.zeros(len(self.image), np.int32)
    place[self.rows] = np.arange(len(self.rows), dtype=np.int32)
    return place


def ask(
  plan: Plan,
  dataset: Dataset,
  devices: parallel.Devices,
  folder: Path,
  *,
  batch_size: int,
  drawn: np.ndarray,
  stages: Iterable[Mapping[str, Any]] = (),
  stop: interrupt.Interrupt,
) -> Asked:
  """The answers of all teachers of a stage, to what it will see at least; the others are zero.

  They lie with the teacher in the store, and serve all stages, seeds and runs with the same images and views.

  Args:
    plan: the stage.
    dataset: its data.
    devices: to compute on.
    folder: the store's.
    batch_size: of the computation.
    drawn: as `drawn` gives it.
    stages: of the whole run, filled: where one of them will ask for embeddings, they are computed at once.
    stop: becomes true when the run is asked to end.

  Raises:
    Interrupted: the run was asked to stop. What was computed is kept.
  """
  question, passes = _question(plan), 0
  embeddings = question.pooled or any(_reads_embeddings(plan, one) for one in stages)
  teachers: list[Kept] = []
  folders: list[Path] = []
  for key, network in zip(plan.reads.teachers, plan.stage.teachers, strict=True):
    entry = store.Entry(folder, key)
    with entry.lock(waiting=console.say):
      tables = _tables(plan, dataset, key, entry.folder)
      for table in tables.values():
        table.verify()
        if table.lost:
          console.say(f"{plan.name}: {table.lost}")
      missing = {pooled: drawn & ~table.present for pooled, table in tables.items()}
      pooled = min(tables, key=lambda pooled: (missing[pooled].sum(), pooled != embeddings))
      if missing[pooled].any():
        variables = parallel.replicate(checkpoint.load_variables(entry.checked(entry.final)), devices)
        say = _say(question._replace(pooled=pooled), network, variables, dataset, devices)
        where = missing[pooled], tables[pooled]
        passes += _compute(plan.name, question, say, *where, batch_size, len(devices), stop)
    read = tables[pooled].read(NAMES[: 1 + question.pooled])
    teachers.append(Kept(*map(functools.partial(cast, jax.Array), (question.place, *read))))
    folders.append(tables[pooled].folder)
  return Asked(tuple(teachers), tuple(folders), passes)


def drawn(plan: Plan, key: jax.Array, order: jax.Array) -> np.ndarray:
  """Which views of which images a stage will see: [m, v], bool, of the images that it trains on.

  Args:
    plan: the stage, of which views have numbers.
    key: of its steps, as in `Frozen`.
    order: the key that its batches are drawn from.
  """
  question, stage = _question(plan), plan.stage
  numbers = jax.jit(jax.vmap(lambda step, index: stage_lib.numbers_drawn(stage, key, step, index)))
  place, seen = question.place, np.zeros((len(question.rows), question.views.total), bool)
  steps = plan.budget.steps_per_epoch
  begin = plan.budget.first_step
  rows = batches.draw_rows(plan.drawing, order, begin)
  for first in range(begin, begin + plan.budget.steps, steps):
    index = np.stack(list(itertools.islice(rows, steps)))
    number = np.asarray(numbers(first + np.arange(steps, dtype=np.int32), index))  # [steps, views, b]
    seen[place[index][:, None], number] = True
  return seen


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
  return Question(views, images.image[:], images.rows, pooled, np.dtype(entry["teacher_cache"]))


def _reads_embeddings(plan: Plan, entry: Mapping[str, Any]) -> bool:
  """Whether a stage will ask the teachers of another for embeddings."""
  shared = set(entry["teachers"]) & set(plan.config["teachers"])
  return bool(shared) and entry["teacher_cache"] != "off" and _of_embeddings(entry)


def _of_embeddings(entry: Mapping[str, Any]) -> bool:
  return any("embedding" in make_method(method).reads for method in entry["methods"])


def _tables(plan: Plan, dataset: Dataset, key: str, folder: Path) -> dict[bool, Table]:
  """What may hold what a teacher says: with embeddings, and where none are asked for, without.

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
  shape = len(question.rows), question.views.total
  # Answers with embeddings serve who asks for none.
  names = {True: f"views-{digest}-pooled"} | ({} if question.pooled else {False: f"views-{digest}"})
  return {pooled: Table(folder / name, shape) for pooled, name in names.items()}


Say = Callable[..., dict[str, np.ndarray]]


def _say(
  question: Question, network: nn.Module, variables: Any, dataset: Dataset, devices: parallel.Devices
) -> Say:
  """(images, their indices, numbers of views) -> the network's answers by name, [b, ...], on the host."""
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(
    kept.make_say(network, question.views, normalize, question.dtype), devices
  )

  def say(*shown: np.ndarray) -> dict[str, np.ndarray]:
    answers = compiled(variables, parallel.split(shown, devices))
    names = NAMES[: 1 + question.pooled]
    return {name: parallel.joined(x, devices) for name, x in zip(names, answers, strict=False)}

  return say


def _compute(
  stage: str,
  question: Question,
  say: Say,
  missing: np.ndarray,
  table: Table,
  batch_size: int,
  num_devices: int,
  stop: interrupt.Interrupt,
) -> int:
  """Computes the missing answers; returns how many."""
  images, views = np.nonzero(missing)
  size = -(-min(batch_size, len(images)) // num_devices) * num_devices
  console.say(f"{stage}  caching teacher outputs of {len(images):,} views")
  bar, saved = console.Bar(f"{stage}  caching teacher outputs", len(images)), time.monotonic()
  try:
    for start in range(0, len(images), size):
      of_batch = np.arange(start, start + size) % len(images)  # the last is filled up with the first views
      rows, where = question.rows[images[of_batch]], of_batch[: len(images) - start]
      said = say(question.image[rows], rows, views[of_batch].astype(np.int32))
      table.put(images[where], views[where], {name: x[: len(where)] for name, x in said.items()})
      stop.set_unsaved(True)
      bar.update(len(where))
      if stop or time.monotonic() - saved > SAVE_EVERY:
        table.save()
        saved = time.monotonic()
      if stop:
        told = f"stopped while caching teacher outputs, at view {start + len(where):,} of {len(images):,}"
        raise interrupt.Interrupted(stop.signum, told)
  finally:
    bar.close()
  table.save()
  stop.set_unsaved(False)
  processes.meet()
  return len(images)
