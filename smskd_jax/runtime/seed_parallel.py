"""Several learners at once, each with its whole batches on a device of its own, or on one with others."""

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
  """The devices on which several learners train, each with whole batches: those made for them too.

  Args:
    devices: as `parallel.select` gives them.
    cpu_devices: as for it: where they were asked for, there are no others.
  """
  if devices[0].platform != "cpu" or cpu_devices is not None:
    return devices
  return jax.local_devices()[: max(len(devices), num_cpus())]


def seed_groups(items: Sequence[T], devices: Devices) -> list[list[T]]:
  """Learners in groups of those that train at once: as many as the devices, or on GPUs and TPUs a multiple of them.

  On CPUs `vmap` makes convolutions two to three times slower (`benchmarks/seeds.py`): there it is one a device. With
  several processes it is one after another.
  """
  size = len(devices) if distributed.process_count() == 1 else 1
  if devices[0].platform != "cpu" and distributed.process_count() == 1:
    size = max(size, len(items) // size * size)
  return [list(items[i : i + size]) for i in range(0, len(items), size)]


def stack(trees: Sequence[Any]) -> Any:
  """n trees of arrays as one of [n, ...], on the host where they were there."""
  of_host = lambda xs: all(isinstance(x, np.ndarray) for x in xs)
  return jax.tree.map(lambda *xs: np.stack(xs) if of_host(xs) else jnp.stack(xs), *trees)


def shard_seeds(tree: Any, devices: Devices) -> Any:
  """Arrays [devices, ...], each row on its device."""
  return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec(AXIS)))


def local_shard(x: jax.Array, device: jax.Device) -> jax.Array:
  """The row of an array [devices, ...] that lies on a device."""
  (found,) = (shard.data for shard in x.addressable_shards if shard.device == device)
  return found[0]
