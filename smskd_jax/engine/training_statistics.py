"""Statistics of the training set for a stage's methods, on the devices of a run."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.engine.plan import StagePlan, statistics_labels
from smskd_jax.models import introspection
from smskd_jax.runtime import console, parallel, signals
from smskd_jax.training import carry_over, statistics


def num_images(plan: StagePlan) -> int:
  """Number of images of the pass for the statistics of a stage; 0 without statistics.

  A stage that continues another one takes over its statistics.
  """
  if statistics.stage_reduction(plan.stage) is None or plan.config["carry_over"] == carry_over.ALL:
    return 0
  return len(plan.input_spec.images.indices)


def zeros(plan: StagePlan, dataset: Dataset) -> tuple[Any, ...]:
  """Zeros in place of the statistics, for a state that a checkpoint replaces."""
  shape, stage = dataset.image_shape, plan.stage
  teachers = tuple(introspection.variable_shapes(network, shape) for network in stage.teachers)
  image, labels = introspection.image_spec(shape), statistics_labels(plan)
  specs = statistics.statistics_spec(stage, teachers, image, labels)
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), specs)


def compute(
  plan: StagePlan,
  teachers: tuple[Any, ...],
  dataset: Dataset,
  devices: parallel.Devices,
  batch_size: int,
  stop: signals.StopRequest,
) -> tuple[Any, ...]:
  """Statistics of the images of a stage, without augmentation: one entry a term.

  All processes compute them from the outputs of all devices.

  Args:
    plan: the stage.
    teachers: the teachers' variables.
    dataset: the data set.
    devices: to compute on.
    batch_size: images of a forward pass.
    stop: becomes true when the run is asked to end.

  Raises:
    Interrupted: the run was asked to end; there is nothing to save.
  """
  images, count = plan.input_spec.images, len(plan.input_spec.images.indices)
  reduction = statistics.stage_reduction(plan.stage)
  assert reduction is not None
  compiled = _compile_forward(
    plan.stage.teachers, reduction.reads, tuple(dataset.mean), tuple(dataset.std), tuple(devices)
  )
  replicated = parallel.replicate(teachers, devices)
  console.log(f"{plan.name}  computing teacher statistics of {count:,} images")
  bar = console.ProgressBar(f"{plan.name}  computing teacher statistics", count)

  def predict(index: np.ndarray) -> Any:
    if stop.should_stop():
      raise signals.Interrupted(
        stop.signum, f"stage {plan.name!r}, stopped while computing teacher statistics"
      )
    batch = images.image[parallel.shard(images.indices[index], devices)]
    outputs = jax.tree.map(lambda x: parallel.unshard(x, devices), compiled(replicated, batch))
    bar.update(min(len(index), count))
    return outputs

  size = -(-min(batch_size, count) // len(devices)) * len(devices)
  spec = introspection.image_spec(dataset.image_shape)
  try:
    return statistics.accumulate(plan.stage, teachers, spec, statistics_labels(plan), predict, size)
  finally:
    bar.close()


@functools.lru_cache(maxsize=4)  # seeds of a stage have equal teachers
def _compile_forward(
  networks: tuple[nn.Module, ...],
  reads: frozenset[str],
  mean: tuple[float, ...],
  std: tuple[float, ...],
  devices: tuple[jax.Device, ...],
) -> Callable[[Any, Any], Any]:
  normalize = functools.partial(augment.normalize, mean=mean, std=std)
  return parallel.compile_predict(statistics.make_forward(networks, reads, normalize), devices)
