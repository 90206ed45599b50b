"""Cache of teacher outputs for the views that a stage samples, filled before the stage.

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
  60.0  # between two saves of the computed outputs: a killed process loses at most these
)
OUTPUT_NAMES = ("logits", "embedding")


class CacheResult(NamedTuple):
  """Cached outputs of the teachers of a stage."""

  teachers: tuple[CachedOutputs, ...]  # memory-mapped files in host memory
  folders: tuple[Path, ...]  # of these files
  forward_passes: int  # computed now; 0 if all outputs were in the store


class CacheSpec(NamedTuple):
  """Outputs that a stage needs from each teacher."""

  views: EnumerableView
  image: np.ndarray  # [n, h, w, c], the whole training set
  indices: np.ndarray  # [m], in the training set, of the images that the stage trains on
  embedding: bool  # True: embeddings besides logits
  dtype: np.dtype

  @property
  def row_index(self) -> np.ndarray:
    """Row of each image of the training set in the cache, [n], int32.

    0 for images that are not cached.
    """
    rows = np.zeros(len(self.image), np.int32)
    rows[self.indices] = np.arange(len(self.indices), dtype=np.int32)
    return rows


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
  """Outputs of all teachers of a stage for the sampled views.

  Missing ones are computed, others are zero.

  The cache lies beside the teacher in the store, and serves all stages, seeds and runs with the same images and views.

  Args:
    plan: the stage.
    dataset: the data set.
    devices: to compute on.
    folder: of the store.
    batch_size: of the computation.
    sampled: as `sampled_views` returns it.
    stages: resolved entries of all stages of the run; embeddings are computed now if a later stage needs them.
    stop: becomes true when the run is asked to end.

  Raises:
    Interrupted: the run was asked to end; computed outputs are saved.
  """
  spec, passes = _cache_spec(plan), 0
  later_embeddings = spec.embedding or any(_shares_embeddings(plan, one) for one in stages)
  teachers: list[CachedOutputs] = []
  folders: list[Path] = []
  for key, network in zip(plan.inputs.teachers, plan.stage.teachers, strict=True):
    entry = store.StageEntry(folder, key)
    with entry.lock(waiting=console.log):
      caches = _verified_caches(plan, dataset, key, entry.folder)
      embedding = _select_cache(caches, sampled, later_embeddings)
      cache, missing = caches[embedding], sampled & ~caches[embedding].present
      if missing.any():
        variables = parallel.replicate(checkpoint.load_final(folder, key), devices)
        forward = make_forward(spec._replace(embedding=embedding), network, variables, dataset, devices)
        passes += _compute(plan.name, spec, forward, missing, cache, batch_size, len(devices), stop)
    arrays = cache.read(OUTPUT_NAMES[: 1 + spec.embedding])
    teachers.append(CachedOutputs(*map(functools.partial(cast, jax.Array), (spec.row_index, *arrays))))
    folders.append(cache.folder)
  return CacheResult(tuple(teachers), tuple(folders), passes)


def _verified_caches(plan: StagePlan, dataset: Dataset, key: str, folder: Path) -> dict[bool, MemmapCache]:
  """Verified caches of a teacher's outputs; damaged outputs count as missing."""
  caches = _caches(plan, dataset, key, folder)
  for cache in caches.values():
    cache.verify()
    if cache.damage:
      console.log(f"{plan.name}: {cache.damage}")
  return caches


def _select_cache(caches: Mapping[bool, MemmapCache], sampled: np.ndarray, later_embeddings: bool) -> bool:
  """Key of the cache with the fewest missing outputs.

  Of equal caches, the one that later stages can use too.
  """

  def cost(embedding: bool) -> tuple[int, bool]:
    return int((sampled & ~caches[embedding].present).sum()), embedding != later_embeddings

  return min(caches, key=cost)


def sampled_views(plan: StagePlan, key: jax.Array, order: jax.Array) -> np.ndarray:
  """Views that a stage samples: [m, v], bool, for m images and v views.

  Args:
    plan: the stage, whose views are enumerable.
    key: of the steps, as in `Frozen`.
    order: key of the batches.
  """
  spec, stage = _cache_spec(plan), plan.stage
  view_indices = jax.jit(
    jax.vmap(lambda step, index: train_step.sampled_view_indices(stage, key, step, index))
  )
  row_index, sampled = spec.row_index, np.zeros((len(spec.indices), spec.views.num_views), bool)
  steps = plan.loop_config.steps_per_epoch
  first_step = plan.loop_config.first_step
  indices = batches.iterate_indices(plan.input_spec, order, first_step)
  for step in range(first_step, first_step + plan.loop_config.num_steps, steps):
    index = np.stack(list(itertools.islice(indices, steps)))
    view_index = np.asarray(view_indices(step + np.arange(steps, dtype=np.int32), index))  # [steps, views, b]
    sampled[row_index[index][:, None], view_index] = True
  return sampled


def check(plans: Iterable[StagePlan], dataset: Dataset, devices: parallel.Devices) -> None:
  """Checks, before training, that the devices have memory for the caches of all stages.

  Raises:
    UserError: the first stage whose cache is larger than the free memory.
  """
  free = parallel.free_bytes(devices)
  for plan in plans:
    if free is None or not plan.stage.view_index_fn:
      continue
    spec = _cache_spec(plan)
    num_values = sum(_num_values(network, spec, dataset) for network in plan.stage.teachers)
    size = f"{spec.views.num_views} views of {len(spec.indices):,} images"
    num_bytes = num_values * spec.dtype.itemsize
    if num_bytes > free:
      raise UserError(
        f"config.stages[{plan.stage_index}].teacher_cache: {size} need {num_bytes / 2**30:.1f} GiB, but "
        f"{free / 2**30:.1f} GiB are free on a device; use fewer views of each image by "
        "augment={'crop_flip': {'num_views': ...}}, 'float16', or 'off'"
      )


def _num_values(network: nn.Module, cache_spec: CacheSpec, dataset: Dataset) -> int:
  """Number of values in the cache of a teacher."""
  embedding = (
    introspection.output_shapes(network, dataset.image_shape).embedding.shape[-1]
    if cache_spec.embedding
    else 0
  )
  return len(cache_spec.indices) * cache_spec.views.num_views * (len(dataset.class_names) + embedding)


def _cache_spec(plan: StagePlan) -> CacheSpec:
  entry, images = plan.config, plan.input_spec.images
  views = enumerable_view(f"config.stages[{plan.stage_index}]", entry)
  return CacheSpec(
    views, images.image[:], images.indices, _needs_embeddings(entry), np.dtype(entry["teacher_cache"])
  )


def _shares_embeddings(plan: StagePlan, entry: Mapping[str, Any]) -> bool:
  """True if a stage entry needs embeddings of a teacher of `plan`."""
  shared = set(entry["teachers"]) & set(plan.config["teachers"])
  return bool(shared) and entry["teacher_cache"] != "off" and _needs_embeddings(entry)


def _needs_embeddings(entry: Mapping[str, Any]) -> bool:
  return any("embedding" in build_method(method).reads for method in entry["methods"])


def _caches(plan: StagePlan, dataset: Dataset, key: str, folder: Path) -> dict[bool, MemmapCache]:
  """Caches that may hold the outputs of a teacher, by whether they have embeddings.

  The folder name is a hash of all that the outputs depend on besides the teacher's key: images, views, type and, for
  pretrained variables, the network.
  """
  spec, name = _cache_spec(plan), plan.config["views"][0]
  content = (
    store.FORMAT,
    dataset.fingerprint,
    hashlib.sha256(spec.indices.tobytes()).hexdigest(),
    name,
    sorted(plan.config["augment"].get(name, {}).items()),
    spec.dtype.name,
    plan.description.get("pretrained", {}).get(key),
  )
  digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
  shape = len(spec.indices), spec.views.num_views
  # A cache with embeddings also serves stages that need none.
  names = {True: f"views-{digest}-embedding"} | ({} if spec.embedding else {False: f"views-{digest}"})
  return {with_embedding: MemmapCache(folder / name, shape) for with_embedding, name in names.items()}


Forward = Callable[..., dict[str, np.ndarray]]


def make_forward(
  cache_spec: CacheSpec, network: nn.Module, variables: Any, dataset: Dataset, devices: parallel.Devices
) -> Forward:
  """Function (images, their indices, view indices) -> outputs by name, on the host."""
  normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
  compiled = parallel.compile_predict(
    evaluate.make_cached_forward(network, cache_spec.views, normalize, cache_spec.dtype), devices
  )

  def forward(*inputs: np.ndarray) -> dict[str, np.ndarray]:
    outputs = compiled(variables, parallel.shard(inputs, devices))
    names = OUTPUT_NAMES[: 1 + cache_spec.embedding]
    return {name: parallel.unshard(x, devices) for name, x in zip(names, outputs, strict=False)}

  return forward


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
  """Computes missing outputs; returns their number."""
  images, views = np.nonzero(missing)
  size = -(-min(batch_size, len(images)) // num_devices) * num_devices
  console.log(f"{stage}  caching teacher outputs of {len(images):,} views")
  bar, saved = console.ProgressBar(f"{stage}  caching teacher outputs", len(images)), time.monotonic()
  try:
    for start in range(0, len(images), size):
      batch = np.arange(start, start + size) % len(images)  # the last batch is filled with the first views
      rows, new = cache_spec.indices[images[batch]], batch[: len(images) - start]
      outputs = forward(cache_spec.image[rows], rows, views[batch].astype(np.int32))
      cache.write(images[new], views[new], {name: x[: len(new)] for name, x in outputs.items()})
      stop.set_unsaved(True)
      bar.update(len(new))
      if stop or time.monotonic() - saved > SAVE_INTERVAL_SECONDS:
        cache.save()
        saved = time.monotonic()
      if stop:
        message = f"stopped while caching teacher outputs, at view {start + len(new):,} of {len(images):,}"
        raise signals.Interrupted(stop.signum, message)
  finally:
    bar.close()
  cache.save()
  stop.set_unsaved(False)
  distributed.barrier()
  return len(images)
