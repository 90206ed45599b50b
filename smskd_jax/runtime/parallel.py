"""Devices: how many, what lies on them, and the only pmap.

State is replicated and carries no device axis; a batch is split over the devices. `jax.pmap` is, since JAX 0.10,
`jit(shard_map(...))`. What leaves a step through `out_axes=None` is taken from one device: everything there has to
be the same on all, that is, computed from replicated values or been through a collective.

With several processes the devices are those of all; what goes into a compiled function and what comes out of it is this
process's part, on its own devices.
"""

from collections.abc import Callable, Sequence
import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from smskd_jax.errors import UserError
from smskd_jax.runtime import distributed

AXIS = "batch"
MIN_IMAGES_PER_CPU_DEVICE = 32  # below it, a virtual device costs more than its core gives

Devices = Sequence[jax.Device]


def select_devices(batch_sizes: Sequence[int], cpu_devices: int | None = None, num_seeds: int = 1) -> Devices:
  """The devices to train on. Before JAX's first use, it also makes a CPU's virtual devices.

  Args:
    batch_sizes: of all stages; each must divide over the devices.
    cpu_devices: how many virtual devices a CPU gives; None for one per core, but with no fewer than 32 images
      each and so that every batch divides; of several processes, each one. No effect on GPUs and TPUs, all of which
      are used.

  Raises:
    UserError: a batch size that the devices do not divide, or more devices asked for than can be had.
  """
  wanted = cpu_devices if cpu_devices is not None else _default_cpu_devices(batch_sizes)
  if wanted < 1:
    raise UserError(f"--cpu_devices: {wanted} is too small; it must be at least 1")
  if distributed.is_initialized():
    return _select_distributed(batch_sizes, cpu_devices)
  # Where JAX is in use already, as in a notebook, its devices are what they are.
  with contextlib.suppress(RuntimeError):
    made = wanted if cpu_devices is not None else max(wanted, min(num_seeds, num_cpus()))
    jax.config.update("jax_num_cpu_devices", made)
  devices = jax.local_devices()
  if devices[0].platform == "cpu":
    if cpu_devices is not None and cpu_devices > len(devices):
      raise UserError(
        f"--cpu_devices: {cpu_devices}, but JAX was started with {len(devices)} in this process"
      )
    devices = devices[: min(wanted, len(devices))]
    while cpu_devices is None and any(size % len(devices) for size in batch_sizes):
      devices = devices[:-1]
  for size in batch_sizes:
    check_divisible(size, len(devices))
  return devices


def force_cpu() -> None:
  """Keeps this process to its CPU: others compute on the GPUs and TPUs. Before JAX's first use."""
  jax.config.update("jax_platforms", "cpu")


def _select_distributed(batch_sizes: Sequence[int], cpu_devices: int | None) -> Devices:
  """The devices of all processes."""
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", cpu_devices or 1)
  devices = jax.devices()
  for size in batch_sizes:
    check_divisible(size, len(devices))
  return devices


def describe(devices: Devices) -> dict[str, Any]:
  """The kind and number of devices, and of processes, as results record them."""
  return {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()}


def local_devices(devices: Devices) -> list[jax.Device]:
  """Those of the devices that are of this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def _default_cpu_devices(batch_sizes: Sequence[int]) -> int:
  most = min((size // MIN_IMAGES_PER_CPU_DEVICE for size in batch_sizes), default=1)
  count = max(1, min(num_cpus(), most))
  while any(size % count for size in batch_sizes):
    count -= 1
  return count


def num_cpus() -> int:
  """How many this process may use."""
  return len(os.sched_getaffinity(0))


def check_divisible(batch_size: int, num_devices: int) -> None:
  """Refuses a batch that does not divide over the devices, and names the nearest that do."""
  if batch_size % num_devices == 0:
    return
  below = batch_size // num_devices * num_devices
  nearest = " or ".join(str(n) for n in (below, below + num_devices) if n)
  raise UserError(
    f"batch_size: {batch_size} images do not divide over {num_devices} devices; the nearest that do: {nearest}"
  )


def compile_step(step: Callable, devices: Devices) -> Callable:
  """(state, frozen, batch) -> (state, metrics) over the devices; the old state's buffers are given away."""
  return jax.pmap(
    step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None), donate_argnums=0, devices=devices
  )


def scan_steps(step: Callable) -> Callable:
  """(state, frozen, batches [n, ...]) -> (state, metrics [n]): n steps, to be compiled as one.

  On CPUs a loop makes convolutions some fifty times slower (measured): there steps go one by one.
  """

  def steps(state, frozen, batches):
    return jax.lax.scan(lambda carried, batch: step(carried, frozen, batch), state, batches)

  return steps


def steps_per_call(devices: Devices, asked: int = 0) -> int:
  """How many steps are one program: as asked, or for 0 what suits the devices."""
  return asked or (1 if devices[0].platform == "cpu" else 16)


def compile_probe(probe: Callable, devices: Devices) -> Callable:
  """(state, frozen, batch) -> metrics over the devices; nothing is given away."""
  return jax.pmap(probe, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)


def compile_per_device(
  step: Callable, devices: Devices, frozen_axes: Any, *, donate: bool = True
) -> Callable:
  """(states [devices, ...], frozen, batches [devices, ...]) -> what the step gives, [devices, ...].

  Each device runs the step on its own, without a word to the others.

  Args:
    step: of one device.
    devices: to compile for.
    frozen_axes: of what is read, 0 for what is dealt to the devices and None for what is on all of them.
    donate: whether the old states' buffers are given away.
  """
  given = (0,) if donate else ()
  return jax.pmap(step, in_axes=(0, frozen_axes, 0), donate_argnums=given, devices=devices)


def compile_predict(predict: Callable, devices: Devices) -> Callable:
  """(variables, batch split over devices) -> output split over devices."""
  return jax.pmap(predict, axis_name=AXIS, in_axes=(None, 0), devices=devices)


def free_bytes(devices: Devices) -> int | None:
  """The memory that is free on the fullest device; on a CPU its share of what the machine has. None: not known."""
  each = distributed.all_gather_json(_free_bytes(local_devices(devices)))
  return None if None in each else min(each)


def _free_bytes(devices: Devices) -> int | None:
  stats = [device.memory_stats() for device in devices]
  if all(of and "bytes_limit" in of for of in stats):
    return min(of["bytes_limit"] - of["bytes_in_use"] for of in stats)
  if devices[0].platform == "cpu" and Path("/proc/meminfo").is_file():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 // len(devices)
  return None


def replicate(tree: Any, devices: Devices) -> Any:
  """The tree on every device. A step that donates needs it: a buffer on one device would be given away twice."""
  return jax.device_put(tree, replicated(devices))


def replicated(devices: Devices) -> NamedSharding:
  """The sharding of what is the same on all devices."""
  return NamedSharding(Mesh(np.asarray(local_devices(devices)), (AXIS,)), PartitionSpec())


def shard(tree: Any, devices: Devices) -> Any:
  """Arrays [b, ...] as [own devices, b / devices, ...], of all devices in their order."""
  count, rows = len(devices), _batch_sharding(devices)
  of_each = lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])
  return jax.tree.map(lambda x: of_each(x)[rows], tree)


def local_batch_indices(batch_size: int, devices: Devices) -> np.ndarray:
  """Which places of a batch are on the devices of this process, device by device."""
  return shard(np.arange(batch_size), devices).reshape(-1)


def shard_local(tree: Any, devices: Devices) -> Any:
  """Arrays of what `own_places` names, [own, ...], as [own devices, own / own devices, ...]."""
  count = len(local_devices(devices))
  return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)


def _batch_sharding(devices: Devices) -> Any:
  """Which of the devices are of this process, as an index."""
  found = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
  return slice(None) if len(found) == len(devices) else np.array(found)


def shard_local_steps(trees: Sequence[Any], devices: Devices) -> Any:
  """n trees as for `deal` as one, of [own devices, n, own / own devices, ...]."""
  return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *(shard_local(tree, devices) for tree in trees))


def unshard(x: jax.Array, devices: Devices) -> np.ndarray:
  """The inverse of `split`, on the host of every process."""
  if distributed.process_count() == 1:
    return np.asarray(x).reshape(-1, *x.shape[2:])
  # [processes, own devices, b / devices, ...]
  gathered = np.asarray(multihost_utils.process_allgather(np.asarray(x)))
  taken = dict.fromkeys(range(len(gathered)), 0)
  rows = []
  for device in devices:
    rows.append(gathered[device.process_index, taken[device.process_index]])
    taken[device.process_index] += 1
  return np.concatenate(rows)


def broadcast_from_primary(tree: Any) -> Any:
  """The lead's tree of arrays, in all processes: hosts that differ may round differently."""
  return multihost_utils.broadcast_one_to_all(tree) if distributed.process_count() > 1 else tree
