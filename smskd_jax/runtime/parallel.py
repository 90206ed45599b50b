"""Data parallelism: selection of devices, placement of arrays, and the only use of pmap.

State is replicated and has no device axis; a batch is sharded over the devices. `jax.pmap` is `jit(shard_map(...))`
since JAX 0.10. An output with `out_axes=None` is taken from one device, so that its value must be equal on all devices:
computed from replicated values, or the result of a collective.

With several processes, `Devices` are those of all processes. Inputs and outputs of a compiled function are the local
part: the arrays on the devices of this process.
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
MIN_IMAGES_PER_CPU_DEVICE = 32  # below, a virtual device costs more than its core gains

Devices = Sequence[jax.Device]


def select_devices(batch_sizes: Sequence[int], cpu_devices: int | None = None, num_seeds: int = 1) -> Devices:
  """Selects the devices to train on.

  Before the first use of JAX, also creates the virtual devices of a CPU.

  Args:
    batch_sizes: of all stages; each must be divisible by the number of devices.
    cpu_devices: number of virtual devices of a CPU, per process; None: one per core, with at least 32 images each and
      every batch divisible. Ignored on GPUs and TPUs, where all devices are used.
    num_seeds: number of seeds that train at once, for which up to one virtual device per core is created.

  Raises:
    UserError: a batch size is not divisible, or more devices are requested than exist.
  """
  count = cpu_devices if cpu_devices is not None else _default_cpu_devices(batch_sizes)
  if count < 1:
    raise UserError(f"--cpu_devices: {count} is too small; it must be at least 1")
  if distributed.is_initialized():
    return _select_distributed(batch_sizes, cpu_devices)
  # JAX may be in use already, as in a notebook; then its number of devices is fixed.
  with contextlib.suppress(RuntimeError):
    created = count if cpu_devices is not None else max(count, min(num_seeds, num_cpus()))
    jax.config.update("jax_num_cpu_devices", created)
  devices = jax.local_devices()
  if devices[0].platform == "cpu":
    if cpu_devices is not None and cpu_devices > len(devices):
      raise UserError(
        f"--cpu_devices: {cpu_devices}, but JAX was started with {len(devices)} in this process"
      )
    devices = devices[: min(count, len(devices))]
    while cpu_devices is None and any(size % len(devices) for size in batch_sizes):
      devices = devices[:-1]
  for size in batch_sizes:
    check_divisible(size, len(devices))
  return devices


def force_cpu() -> None:
  """Restricts this process to its CPU, because others use the GPUs and TPUs.

  Call before the first use of JAX.
  """
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
  """Kind and number of devices, and number of processes, for results."""
  return {"kind": devices[0].device_kind, "count": len(devices), "processes": jax.process_count()}


def local_devices(devices: Devices) -> list[jax.Device]:
  """The devices of this process."""
  return [device for device in devices if device.process_index == jax.process_index()]


def _default_cpu_devices(batch_sizes: Sequence[int]) -> int:
  most = min((size // MIN_IMAGES_PER_CPU_DEVICE for size in batch_sizes), default=1)
  count = max(1, min(num_cpus(), most))
  while any(size % count for size in batch_sizes):
    count -= 1
  return count


def num_cpus() -> int:
  """Number of CPU cores that this process may use."""
  return len(os.sched_getaffinity(0))


def check_divisible(batch_size: int, num_devices: int) -> None:
  """Raises UserError for a batch size that the number of devices does not divide.

  Names the nearest valid sizes.
  """
  if batch_size % num_devices == 0:
    return
  below = batch_size // num_devices * num_devices
  nearest = " or ".join(str(n) for n in (below, below + num_devices) if n)
  raise UserError(
    f"batch_size: {batch_size} images do not divide over {num_devices} devices; the nearest that do: {nearest}"
  )


def compile_step(step: Callable, devices: Devices) -> Callable:
  """Compiles (state, frozen, batch) -> (state, metrics) for the devices.

  Donates the old state.
  """
  mapped = jax.pmap(
    step, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, None), donate_argnums=0, devices=devices
  )
  if devices[0].platform == "cpu" and len(devices) > 1 and distributed.process_count() == 1:
    return _StepInOrder(mapped)
  return mapped


class _StepInOrder:
  """Training step of several virtual devices of a CPU, whose operations run in a fixed order.

  XLA's default order is for concurrency: it mixes the teacher with the student, whose batch norms wait for the other
  devices, so that cores are idle (measured: a step of resnet56 -> resnet20 takes 1.3 times as long).
  """

  _OPTIONS = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

  def __init__(self, mapped: Any):
    self.lower = mapped.lower
    self._programs: dict[Any, Callable] = {}  # by the shapes of a batch

  def __call__(self, state: Any, frozen: Any, batch: Any) -> Any:
    shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
    if shapes not in self._programs:
      self._programs[shapes] = self._compile(self.lower(state, frozen, batch))
    return self._programs[shapes](state, frozen, batch)

  def _compile(self, lowered: Any) -> Callable:
    try:
      return lowered.compile(self._OPTIONS)
    except jax.errors.JaxRuntimeError as error:
      if next(iter(self._OPTIONS)) not in str(error):  # else a version of XLA without the option
        raise
      return lowered.compile()


def scan_steps(step: Callable) -> Callable:
  """Scans a step: (state, frozen, batches [n, ...]) -> (state, metrics [n]).

  Not for CPUs, where convolutions inside a loop are about fifty times slower (measured).
  """

  def steps(state, frozen, batches):
    return jax.lax.scan(lambda carried, batch: step(carried, frozen, batch), state, batches)

  return steps


def steps_per_call(devices: Devices, requested: int = 0) -> int:
  """Training steps per compiled call: `requested`, or for 0 one on a CPU and 16 elsewhere."""
  return requested or (1 if devices[0].platform == "cpu" else 16)


def compile_probe(probe: Callable, devices: Devices) -> Callable:
  """Compiles (state, frozen, batch) -> metrics for the devices; donates nothing."""
  return jax.pmap(probe, axis_name=AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices)


def compile_per_device(
  step: Callable, devices: Devices, frozen_axes: Any, *, donate: bool = True
) -> Callable:
  """Compiles a function of arrays [devices, ...] for each device.

  (states, frozen, batches) -> outputs; the frozen inputs by their axes.

  Each device runs the step independently, without collectives.

  Args:
    step: of one device.
    devices: to compile for.
    frozen_axes: tree of axes of `frozen`: 0 for arrays with one row per device, None for replicated arrays.
    donate: donate the old states.
  """
  donated = (0,) if donate else ()
  return jax.pmap(step, in_axes=(0, frozen_axes, 0), donate_argnums=donated, devices=devices)


def compile_predict(predict: Callable, devices: Devices) -> Callable:
  """Compiles (variables, sharded batch) -> sharded outputs."""
  return jax.pmap(predict, axis_name=AXIS, in_axes=(None, 0), devices=devices)


def free_bytes(devices: Devices) -> int | None:
  """Free bytes on the fullest device.

  For a CPU device, its part of the machine's free memory; None: unknown.
  """
  each = distributed.all_gather_json(_free_bytes(local_devices(devices)))
  return None if None in each else min(each)


def _free_bytes(devices: Devices) -> int | None:
  stats = [device.memory_stats() for device in devices]
  if all(one and "bytes_limit" in one for one in stats):
    return min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
  if devices[0].platform == "cpu" and Path("/proc/meminfo").is_file():
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 // len(devices)
  return None


def replicate(tree: Any, devices: Devices) -> Any:
  """Puts the tree on every local device.

  A step that donates its state needs a buffer on each device.
  """
  return jax.device_put(tree, replicated(devices))


def replicated(devices: Devices) -> NamedSharding:
  """Sharding of replicated arrays on the local devices."""
  return NamedSharding(Mesh(np.asarray(local_devices(devices)), (AXIS,)), PartitionSpec())


def shard(tree: Any, devices: Devices) -> Any:
  """Reshapes arrays [b, ...] to [local devices, b / devices, ...].

  The local rows, in the order of the devices.
  """
  count, rows = len(devices), _local_rows(devices)
  return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:])[rows], tree)


def local_batch_indices(batch_size: int, devices: Devices) -> np.ndarray:
  """Indices [local batch] of a batch's examples on the local devices, device by device."""
  return shard(np.arange(batch_size), devices).reshape(-1)


def shard_local(tree: Any, devices: Devices) -> Any:
  """Reshapes arrays [local batch, ...] to [local devices, b, ...].

  The order is that of `local_batch_indices`.
  """
  count = len(local_devices(devices))
  return jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), tree)


def _local_rows(devices: Devices) -> Any:
  """Index of the local devices among the devices."""
  rows = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
  return slice(None) if len(rows) == len(devices) else np.array(rows)


def shard_local_steps(trees: Sequence[Any], devices: Devices) -> Any:
  """Stacks the `shard_local` arrays of n steps to [local devices, n, b, ...]."""
  return jax.tree.map(lambda *xs: np.stack(xs, axis=1), *(shard_local(tree, devices) for tree in trees))


def unshard(x: jax.Array, devices: Devices) -> np.ndarray:
  """Inverse of `shard`: the whole array [b, ...] on the host of every process."""
  if distributed.process_count() == 1:
    return np.asarray(x).reshape(-1, *x.shape[2:])
  # [processes, local devices, b / devices, ...]
  gathered = np.asarray(multihost_utils.process_allgather(np.asarray(x)))
  next_row = dict.fromkeys(range(len(gathered)), 0)
  rows = []
  for device in devices:
    rows.append(gathered[device.process_index, next_row[device.process_index]])
    next_row[device.process_index] += 1
  return np.concatenate(rows)


def broadcast_from_primary(tree: Any) -> Any:
  """Process 0's tree of arrays in all processes.

  Different hosts may round differently.
  """
  return multihost_utils.broadcast_one_to_all(tree) if distributed.process_count() > 1 else tree
