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

from smskd_jax.config.build import enumerable_view
from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.data.views import EnumerableView
from smskd_jax.engine.plan import StagePlan
from smskd_jax.errors import UserError
from smskd_jax.losses import build_method
from smskd_jax.models import introspection
from smskd_jax.runtime import checkpoint, console, distributed, parallel, signals, store
from smskd_jax.runtime.memmap_cache import MemmapCache
from smskd_jax.training import batches, evaluate, train_step
from smskd_jax.types import CachedOutputs

SAVE_INTERVAL_SECONDS = (
  60.0  # seconds between marks of what has been computed: what an end without warning costs
)
OUTPUT_NAMES = ("logits", "embedding")


class CacheResult(NamedTuple):
  """What is kept, and what it cost to have it."""

  teachers: tuple[
    CachedOutputs, ...
  ]  # on the host, as files in memory: what others ask for later will be there too
  folders: tuple[Path, ...]  # of these files
  forward_passes: int  # 0 where all was in the store


class CacheSpec(NamedTuple):
  """What is asked of each teacher."""

  views: EnumerableView
  image: np.ndarray  # [n, h, w, c], the whole training set
  indices: np.ndarray  # [m], of the images that the stage trains on
  embedding: bool  # whether embeddings are asked for too
  dtype: np.dtype

  @property
  def row_index(self) -> np.ndarray:
    """Where an image of the training set is in what is kept, [n], int32; 0 where it is not."""
    place = np.zeros(len(self.image), np.int32)
    place[self.indices] = np.arange(len(self.indices), dtype=np.int32)
    return place


def load_or_compute(
  plan: StagePlan,
  dataset: Dataset,
  devices: parallel.Devices,
  folder: Path,
  *,
  batch_size: int,
  sampled: np.ndarray,
  stages: Iterable[Mapping[str, Any]] = (),
  stop: signals.StopRequest,
) -> CacheResult:
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
  question, passes = _cache_spec(plan), 0
  embeddings = question.embedding or any(_shares_embeddings(plan, one) for one in stages)
  teachers: list[CachedOutputs] = []
  folders: list[Path] = []
  for key, network in zip(plan.inputs.teachers, plan.stage.teachers, strict=True):
    entry = store.StageEntry(folder, key)
    with entry.lock(waiting=console.log):
      tables = _caches(plan, dataset, key, entry.folder)
      for table in tables.values():
        table.verify()
        if table.damage:
          console.log(f"{plan.name}: {table.damage}")
      missing = {pooled: sampled & ~table.present for pooled, table in tables.items()}
      pooled = min(tables, key=lambda pooled: (missing[pooled].sum(), pooled != embeddings))
      if missing[pooled].any():
        variables = parallel.replicate(checkpoint.load_variables(entry.verified(entry.final)), devices)
        say = make_forward(question._replace(embedding=pooled), network, variables, dataset, devices)
        where = missing[pooled], tables[pooled]
        passes += _compute(plan.name, question, say, *where, batch_size, len(devices), stop)
    read = tables[pooled].read(OUTPUT_NAMES[: 1 + question.embedding])
    teachers.append(CachedOutputs(*map(functools.partial(cast, jax.Array), (question.row_index, *read))))
    folders.append(tables[pooled].folder)
  return CacheResult(tuple(teachers), tuple(folders), passes)


def sampled_views(plan: StagePlan, key: jax.Array, order: jax.Array) -> np.ndarray:
  """Which views of which images a stage will see: [m, v], bool, of the images that it trains on.

  Args:
    plan: the stage, of which views have numbers.
    key: of its steps, as in `Frozen`.
    order: the key that its batches are drawn from.
  """
  question, stage = _cache_spec(plan), plan.stage
  numbers = jax.jit(jax.vmap(lambda step, index: train_step.sampled_view_indices(stage, key, step, index)))
  place, seen = question.row_index, np.zeros((len(question.indices), question.views.num_views), bool)
  steps = plan.loop_config.steps_per_epoch
  begin = plan.loop_config.first_step
  rows = batches.iterate_indices(plan.input_spec, order, begin)
  for first in range(begin, begin + plan.loop_config.num_steps, steps):
    index = np.stack(list(itertools.islice(rows, steps)))
    number = np.asarray(numbers(first + np.arange(steps, dtype=np.int32), index))  # [steps, views, b]
    seen[place[index][:, None], number] = True
  return seen


def check(plans: Iterable[StagePlan], dataset: Dataset, devices: parallel.Devices) -> None:
  """Checks, before anything is trained, that the devices have memory for what stages keep.

  Raises:
    UserError: the first stage whose teachers' answers are more than is free now.
  """
  free = parallel.free_bytes(devices)
  for plan in plans:
    if free is None or not plan.stage.view_index_fn:
      continue
    question = _cache_spec(plan)
    numbers = sum(_num_values(network, question, dataset) for network in plan.stage.teachers)
    shown = f"{question.views.num_views} views of {len(question.indices):,} images"
    needed = numbers * question.dtype.itemsize
    if needed > free:
      raise UserError(
        f"config.stages[{plan.stage_index}].teacher_cache: {shown} need {needed / 2**30:.1f} GiB, but "
        f"{free / 2**30:.1f} GiB are free on a device; use fewer views of each image by "
        "augment={'crop_flip': {'num_views': ...}}, 'float16', or 'off'"
      )


def _num_values(network: nn.Module, cache_spec: CacheSpec, dataset: Dataset) -> int:
  """How many numbers a teacher's answers are."""
  pooled = (
    introspection.output_shapes(network, dataset.image_shape).embedding.shape[-1]
    if cache_spec.embedding
    else 0
  )
  return len(cache_spec.indices) * cache_spec.views.num_views * (len(dataset.class_names) + pooled)


def _cache_spec(plan: StagePlan) -> CacheSpec:
  entry, images = plan.config, plan.input_spec.images
  pooled = _needs_embeddings(entry)
  views = enumerable_view(f"config.stages[{plan.stage_index}]", entry)
  return CacheSpec(views, images.image[:], images.indices, pooled, np.dtype(entry["teacher_cache"]))


def _shares_embeddings(plan: StagePlan, entry: Mapping[str, Any]) -> bool:
  """Whether a stage will ask the teachers of another for embeddings."""
  shared = set(entry["teachers"]) & set(plan.config["teachers"])
  return bool(shared) and entry["teacher_cache"] != "off" and _needs_embeddings(entry)


def _needs_embeddings(entry: Mapping[str, Any]) -> bool:
  return any("embedding" in build_method(method).reads for method in entry["methods"])


def _caches(plan: StagePlan, dataset: Dataset, key: str, folder: Path) -> dict[bool, MemmapCache]:
  """What may hold what a teacher says: with embeddings, and where none are asked for, without.

  Their name says what the teacher's key does not: the views and, of variables that were given, what computes with them.
  """
  question, name = _cache_spec(plan), plan.config["views"][0]
  asked = (
    store.FORMAT,
    dataset.fingerprint,
    hashlib.sha256(question.indices.tobytes()).hexdigest(),
    name,
    sorted(plan.config["augment"].get(name, {}).items()),
    question.dtype.name,
    plan.description.get("given", {}).get(key),
  )
  digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
  shape = len(question.indices), question.views.num_views
  # Answers with embeddings serve who asks for none.
  names = {True: f"views-{digest}-embedding"} | ({} if question.embedding else {False: f"views-{digest}"})
  return {pooled: MemmapCache(folder / name, shape) for pooled, name in names.items()}


Forward = Callable[..., dict[str, np.ndarray]]


def make_forward(
  cache_spec: CacheSpec, network: nn.Module, variables: Any, dataset: Dataset, devices: parallel.Devices
) -> Forward:
  """(images, their indices, numbers of views) -> the network's answers by name, [b, ...], on the host."""
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(
    evaluate.make_cached_forward(network, cache_spec.views, normalize, cache_spec.dtype), devices
  )

  def say(*shown: np.ndarray) -> dict[str, np.ndarray]:
    answers = compiled(variables, parallel.shard(shown, devices))
    names = OUTPUT_NAMES[: 1 + cache_spec.embedding]
    return {name: parallel.unshard(x, devices) for name, x in zip(names, answers, strict=False)}

  return say


def _compute(
  stage: str,
  cache_spec: CacheSpec,
  forward: Forward,
  missing: np.ndarray,
  cache: MemmapCache,
  batch_size: int,
  num_devices: int,
  stop: signals.StopRequest,
) -> int:
  """Computes the missing answers; returns how many."""
  images, views = np.nonzero(missing)
  size = -(-min(batch_size, len(images)) // num_devices) * num_devices
  console.log(f"{stage}  caching teacher outputs of {len(images):,} views")
  bar, saved = console.ProgressBar(f"{stage}  caching teacher outputs", len(images)), time.monotonic()
  try:
    for start in range(0, len(images), size):
      of_batch = np.arange(start, start + size) % len(images)  # the last is filled up with the first views
      rows, where = cache_spec.indices[images[of_batch]], of_batch[: len(images) - start]
      said = forward(cache_spec.image[rows], rows, views[of_batch].astype(np.int32))
      cache.write(images[where], views[where], {name: x[: len(where)] for name, x in said.items()})
      stop.set_unsaved(True)
      bar.update(len(where))
      if stop or time.monotonic() - saved > SAVE_INTERVAL_SECONDS:
        cache.save()
        saved = time.monotonic()
      if stop:
        told = f"stopped while caching teacher outputs, at view {start + len(where):,} of {len(images):,}"
        raise signals.Interrupted(stop.signum, told)
  finally:
    bar.close()
  cache.save()
  stop.set_unsaved(False)
  distributed.barrier()
  return len(images)
