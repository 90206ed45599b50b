"""The compiled step of a stage for one learner or for several, and where their states lie.

One learner has its batches split over the devices. Several, which differ in their seed, are one program too: each has
its whole batches on a device of its own, with no exchange between devices, or shares it with others, as `vmap`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

from smskd_jax.runtime import parallel, seed_parallel
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.objective import Metrics
from smskd_jax.training.stage import Stage
from smskd_jax.types import Batch, Frozen, TrainState

SeedBatches = Sequence[Batch]  # of the host, one for each learner; of several processes, each its own part


class Trainer(Protocol):
  """What the loop knows of it."""

  num_seeds: int
  devices: parallel.Devices

  def state(self, seed_index: int) -> TrainState:
    """The state of a learner as it is now, on some device. It may be given away with the next step."""

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """Trains one step on each of `batches`; the metrics are on the devices, to be taken apart by `apart`."""

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """What pulls on the learners, as the metrics of a step."""

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """The metrics of each learner, of what was fetched from the devices: scalars, or [n] of n steps."""


class SingleTrainer:
  """One learner."""

  num_seeds = 1

  def __init__(self, stage: Stage, devices: parallel.Devices, state: TrainState, frozen: Frozen):
    """Takes its state and what it reads, on all devices; compiles when it is called."""
    self.devices, self._state, self._frozen = devices, state, frozen
    step = stage_lib.make_train_step(stage, parallel.AXIS)
    self._step = parallel.compile_step(step, devices)
    self._steps = parallel.compile_step(parallel.scan_steps(step), devices)
    self._probe = parallel.compile_probe(stage_lib.make_gradient_diagnostics(stage, parallel.AXIS), devices)

  def state(self, seed_index: int) -> TrainState:
    """As in `Program`; on all devices."""
    del seed_index
    return self._state

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """As in `Program`."""
    own = [batch for (batch,) in batches]
    if len(own) == 1:
      self._state, metrics = self._step(self._state, self._frozen, parallel.shard_local(own[0], self.devices))
    else:
      dealt = parallel.shard_local_steps(own, self.devices)
      self._state, metrics = self._steps(self._state, self._frozen, dealt)
    return metrics

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """As in `Program`."""
    return self._probe(self._state, self._frozen, parallel.shard_local(batches[0], self.devices))

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """As in `Program`."""
    return [metrics]


class SeedState(NamedTuple):
  """A learner among several."""

  state: TrainState
  frozen: Frozen
  teacher_ids: tuple[Any, ...]  # what tells its teachers apart from those of others


class SeedParallelTrainer:
  """Several learners of one stage, dealt to the devices in their order."""

  def __init__(self, stage: Stage, devices: parallel.Devices, seeds: Sequence[SeedState]):
    """Takes the learners, as many as the devices or a multiple of them; compiles when it is called."""
    self.devices, self.num_seeds = devices, len(seeds)
    self._seeds_per_device = len(seeds) // len(devices)
    self._state = self._shard([of.state for of in seeds])
    self._frozen, axes = self._shard_frozen(seeds)
    step = stage_lib.make_train_step(stage)
    self._step = parallel.compile_per_device(self._vmap_seeds(step, axes), devices, axes)
    self._steps = parallel.compile_per_device(
      self._vmap_seeds(parallel.scan_steps(step), axes), devices, axes
    )
    probe = self._vmap_seeds(stage_lib.make_gradient_diagnostics(stage), axes)
    self._probe = parallel.compile_per_device(probe, devices, axes, donate=False)

  def state(self, seed_index: int) -> TrainState:
    """As in `Program`; on its own device."""
    device, among = self._locate(seed_index)
    own = lambda x: seed_parallel.local_shard(x, self.devices[device])
    return jax.tree.map(lambda x: own(x) if among is None else own(x)[among], self._state)

  def train(self, batches: Sequence[SeedBatches]) -> Metrics:
    """As in `Program`."""
    if len(batches) == 1:
      self._state, metrics = self._step(self._state, self._frozen, self._shard(batches[0]))
    else:
      rows = [seed_parallel.stack(own) for own in zip(*batches, strict=True)]
      self._state, metrics = self._steps(self._state, self._frozen, self._shard(rows))
    return metrics

  def gradient_stats(self, batches: SeedBatches) -> Metrics:
    """As in `Program`."""
    return self._probe(self._state, self._frozen, self._shard(batches))

  def split_metrics(self, metrics: Metrics) -> list[Metrics]:
    """As in `Program`."""
    places = [tuple(i for i in self._locate(learner) if i is not None) for learner in range(self.num_seeds)]
    return [jax.tree.map(lambda x, place=place: x[place], metrics) for place in places]

  def _locate(self, seed_index: int) -> tuple[int, int | None]:
    """On which device a learner is, and which of those there; None where it is alone."""
    device, among = divmod(seed_index, self._seeds_per_device)
    return device, among if self._seeds_per_device > 1 else None

  def _vmap_seeds(self, pure: Any, axes: Frozen) -> Any:
    return pure if self._seeds_per_device == 1 else jax.vmap(pure, in_axes=(0, axes, 0))

  def _shard(self, trees: Sequence[Any]) -> Any:
    """One tree of arrays [devices, ...], or [devices, learners of each, ...]."""
    shape = (
      (len(self.devices), self._seeds_per_device) if self._seeds_per_device > 1 else (len(self.devices),)
    )
    stacked = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), seed_parallel.stack(trees))
    return seed_parallel.shard_seeds(stacked, self.devices)

  def _shard_frozen(self, seeds: Sequence[SeedState]) -> tuple[Frozen, Frozen]:
    """What the learners read, and along which axis each of it is theirs: None for what is the same for all."""
    first = seeds[0].frozen
    shared = [len({of.teacher_ids[i] for of in seeds}) == 1 for i in range(len(first.teachers))]
    teachers = tuple(
      parallel.replicate(teacher, self.devices)
      if same
      else self._shard([of.frozen.teachers[i] for of in seeds])
      for i, (teacher, same) in enumerate(zip(first.teachers, shared, strict=True))
    )
    reference = None if first.reference is None else self._shard([of.frozen.reference for of in seeds])
    axes = Frozen(0, tuple(None if same else 0 for same in shared), None if reference is None else 0)  # type: ignore[arg-type]
    return Frozen(self._shard([of.frozen.key for of in seeds]), teachers, reference), axes
