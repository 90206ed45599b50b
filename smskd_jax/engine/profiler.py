"""Profiler of a training step: a trace, and FLOPs and bytes relative to measured peaks.

Profiled steps start from the stage's initial state and are discarded, so that profiling does not change a run.
"""

from collections.abc import Callable, Iterable
import itertools
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smskd_jax.engine.plan import StagePlan
from smskd_jax.layers import convolution
from smskd_jax.runtime import console, parallel, store
from smskd_jax.training.train_step import make_train_step
from smskd_jax.types import Batch, Frozen, TrainState

WARMUP_STEPS = 3  # before the traced steps
# Side of the matrices whose product measures peak FLOP/s, and elements of the array whose sum measures peak memory
# bandwidth: on an accelerator, enough work that starting the program does not count.
MATRIX_SIZE = {"cpu": 2048, "accelerator": 8192}
ARRAY_SIZE = {"cpu": 1 << 25, "accelerator": 1 << 28}


class HardwarePeaks(NamedTuple):
  """Measured peak performance of all devices together."""

  flops: float  # per second, of a product of large matrices, by default in float32
  bytes: float  # per second, read by sums over a large array


class Profile(NamedTuple):
  """Cost of a compiled training step, on all devices together."""

  seconds: float  # per step
  images: int  # per step
  flops: float  # per step, as XLA counts: padding of convolutions is free
  bytes: float  # per step, read and written by operations; bytes in caches are counted too
  memory: int  # bytes on a device: arguments, results and temporaries
  peaks: HardwarePeaks


def measure_peaks(
  devices: parallel.Devices, repeats: int = 5, *, dtype: Any = jnp.float32, matrix_size: int = 0
) -> HardwarePeaks:
  """Measures the peak performance of the devices.

  Args:
    devices: to measure, together.
    repeats: timed runs; the fastest counts.
    dtype: of the matrices.
    matrix_size: side of the matrices; 0: a size that suits the platform.
  """
  count, kind = len(devices), "cpu" if devices[0].platform == "cpu" else "accelerator"
  size, width = matrix_size or MATRIX_SIZE[kind], MATRIX_SIZE["cpu"]
  scaled = parallel.compile_predict(lambda scale, x: scale.astype(x.dtype) * x, devices)
  product = parallel.compile_predict(lambda scale, x: scale.astype(x.dtype) * (x @ x), devices)
  total = parallel.compile_predict(lambda scale, x: scale * x.sum(0), devices)

  def fastest(run, x):
    one = jnp.ones(())
    x = scaled(one, x)  # on the devices, as the inputs of a step
    return min(_seconds(lambda: run(one, x)) for _ in range(repeats + 1))

  # Random numbers, because products of equal numbers need less power and may be faster.
  matrix_seconds = fastest(product, jax.random.normal(jax.random.key(0), (count, size, size), dtype))
  numbers = jnp.ones((count, ARRAY_SIZE[kind] // width // count, width))
  return HardwarePeaks(2 * count * size**3 / matrix_seconds, numbers.nbytes / fastest(total, numbers))


def memory_bytes(compiled: Any) -> int:
  """Bytes on a device that a compiled program needs: arguments, results and temporaries."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )


class Profiler:
  """Profiles the stages of a run before they train; measures the hardware peaks once."""

  def __init__(self, devices: parallel.Devices, folder: Path, steps: int):
    """Stores the folder of traces and the number of steps to trace (0: profile nothing)."""
    self._devices, self._folder, self._steps = devices, folder, steps
    self._peaks: HardwarePeaks | None = None

  def profile(self, plan: StagePlan, state: TrainState, frozen: Frozen, batches: Iterable[Batch]) -> None:
    """Traces steps of a stage, writes FOLDER/STAGE/profile.json and prints a table.

    Args:
      plan: the stage.
      state: initial state, on the devices.
      frozen: inputs of the stage.
      batches: in host memory, from the first step on.
    """
    if not self._steps:
      return
    frozen = parallel.replicate(frozen, self._devices)
    self._peaks = self._peaks or measure_peaks(self._devices)
    folder = self._folder / plan.name
    profile = profile_stage(plan, state, frozen, batches, self._devices, folder, self._steps, self._peaks)
    console.log(f"{table({plan.name: profile})}\n  trace: {folder}")


def profile_stage(
  plan: StagePlan,
  state: TrainState,
  frozen: Frozen,
  batches: Iterable[Batch],
  devices: parallel.Devices,
  folder: Path,
  steps: int,
  peaks: HardwarePeaks,
) -> Profile:
  """Profiles the step of a stage.

  Args:
    plan: the stage.
    state: state before the first step, on the devices; the profiler copies it.
    frozen: frozen inputs, on the devices.
    batches: on the host, from the first step on.
    devices: devices of the training.
    folder: for the trace (TensorBoard, Perfetto) and profile.json.
    steps: number of steps to trace, at most as many as there are batches.
    peaks: of these devices.
  """
  split = [parallel.shard_local(batch, devices) for batch in itertools.islice(batches, WARMUP_STEPS + steps)]

  def lower() -> Any:
    step: Any = parallel.compile_step(make_train_step(plan.stage, parallel.AXIS), devices)
    return step.lower(state, frozen, split[0])

  with convolution.use_xla_convolution():  # XLA counts no operations of others
    counted = lower()
    flops = (counted.cost_analysis() or counted.compile().cost_analysis())["flops"]
  compiled = lower().compile()
  state = jax.tree.map(jnp.copy, state)

  def run(some: Iterable[Batch]) -> None:
    nonlocal state
    for batch in some:
      state, _ = compiled(state, frozen, batch)
    jax.block_until_ready(state)

  warm, traced = split[: len(split) - steps] or split[:1], split[-steps:]
  run(warm)
  with jax.profiler.trace(str(folder)):
    seconds = _seconds(lambda: run(traced)) / len(traced)
  found = _profile(compiled, flops, seconds, plan.loop_config.batch_size, len(devices), peaks)
  store.write_json(folder / "profile.json", found._asdict() | {"ceilings": found.peaks._asdict()})
  return found


def _profile(
  compiled: Any, flops: float, seconds: float, images: int, count: int, ceilings: HardwarePeaks
) -> Profile:
  moved = compiled.cost_analysis().get("bytes accessed", 0.0)
  return Profile(seconds, images, count * flops, count * moved, memory_bytes(compiled), ceilings)


def table(profiles: dict[str, Profile]) -> str:
  """Table of the profiles of stages, by their names, for the console."""
  header = (
    "stage",
    "ms a step",
    "images/s",
    "FLOPs",
    "FLOP/s",
    "of peak",
    "bytes",
    "bytes/s",
    "of peak",
    "memory",
  )
  rows = [
    (
      name,
      f"{1e3 * of.seconds:.1f}",
      f"{of.images / of.seconds:.0f}",
      console.format_si(of.flops),
      console.format_si(of.flops / of.seconds),
      f"{of.flops / of.seconds / of.peaks.flops:.0%}",
      console.format_si(of.bytes),
      console.format_si(of.bytes / of.seconds),
      f"{of.bytes / of.seconds / of.peaks.bytes:.0%}",
      console.format_si(of.memory),
    )
    for name, of in profiles.items()
  ]
  return console.format_table(header, rows)


def _seconds(run: Callable[[], Any]) -> float:
  began = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - began
