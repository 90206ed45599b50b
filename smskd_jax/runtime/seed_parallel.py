"""Seed parallelism: several seeds train at once, one or several on a device.

Each seed has whole batches.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from smskd_jax.runtime import distributed
from smskd_jax.runtime.parallel import AXIS, Devices, num_cpus

T = TypeVar("T")


def select_seed_devices(devices: Devices, cpu_devices: int | None = None) -> Devices:
  """Devices for seed-parallel training.

  Includes the virtual devices that were created for the seeds.

  Args:
    devices: of `parallel.select_devices`.
    cpu_devices: as for `parallel.select_devices`; a requested number is not exceeded.
  """
  if devices[0].platform != "cpu" or cpu_devices is not None:
    return devices
  return jax.local_devices()[: max(len(devices), num_cpus())]


def seed_groups(items: Sequence[T], devices: Devices) -> list[list[T]]:
  """Groups of seeds that train at once.

  One per device, or on GPUs and TPUs a multiple of the devices.

  One per device on CPUs, where `vmap` makes convolutions two to three times slower (`benchmarks/seeds.py`). With
  several processes, seeds train one after another.
  """
  size = len(devices) if distributed.process_count() == 1 else 1
  if devices[0].platform != "cpu" and distributed.process_count() == 1:
    size = max(size, len(items) // size * size)
  return [list(items[i : i + size]) for i in range(0, len(items), size)]


def stack(trees: Sequence[Any]) -> Any:
  """Stacks n trees to one of arrays [n, ...]; NumPy arrays stay on the host."""

  def stack_leaves(*xs):
    return np.stack(xs) if all(isinstance(x, np.ndarray) for x in xs) else jnp.stack(xs)

  return jax.tree.map(stack_leaves, *trees)


def shard_seeds(tree: Any, devices: Devices) -> Any:
  """Puts each row of arrays [devices, ...] on its device."""
  return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS)))


def local_shard(x: jax.Array, device: jax.Device) -> jax.Array:
  """The row of an array [devices, ...] on a device."""
  (rows,) = (shard.data for shard in x.addressable_shards if shard.device == device)
  return rows[0]
