"""The compiled step of a stage for one learner or for several, and where their states lie.

One learner has its batches split over the devices. Several, which differ in their seed, are one program too: each has
its whole batches on a device of its own, with no exchange between devices, or shares it with others, as `vmap`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax

from smskd_jax.runtime import beside, parallel
from smskd_jax.state import Batch, Frozen, TrainState
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.objective import Metrics
from smskd_jax.training.stage import Stage

Batches = Sequence[Batch]  # of the host, one for each learner; of several processes, each its own part


class Program(Protocol):
  """What the loop knows of it."""

  learners: int
  devices: parallel.Devices

  def state(self, learner: int) -> TrainState:
    """The state of a learner as it is now, on some device. It may be given away with the next step."""

  def train(self, batches: Sequence[Batches]) -> Metrics:
    """Trains one step on each of `batches`; the metrics are on the devices, to be taken apart by `apart`."""

  def probe(self, batches: Batches) -> Metrics:
    """What pulls on the learners, as the metrics of a step."""

  def apart(self, metrics: Metrics) -> list[Metrics]:
    """The metrics of each learner, of what was fetched from the devices: scalars, or [n] of n steps."""


class Alone:
  """One learner."""

  learners = 1

  def __init__(self, stage: Stage, devices: parallel.Devices, state: TrainState, frozen: Frozen):
    """Takes its state and what it reads, on all devices; compiles when it is called."""
    self.devices, self._state, self._frozen = devices, state, frozen
    step = stage_lib.make_train_step(stage, parallel.AXIS)
    self._step = parallel.compile_step(step, devices)
    self._steps = parallel.compile_step(parallel.in_a_row(step), devices)
    self._probe = parallel.compile_probe(stage_lib.make_probe(stage, parallel.AXIS), devices)

  def state(self, learner: int) -> TrainState:
    """As in `Program`; on all devices."""
    del learner
    return self._state

  def train(self, batches: Sequence[Batches]) -> Metrics:
    """As in `Program`."""
    own = [batch for (batch,) in batches]
    if len(own) == 1:
      self._state, metrics = self._step(self._state, self._frozen, parallel.deal(own[0], self.devices))
    else:
      dealt = parallel.deal_each(own, self.devices)
      self._state, metrics = self._steps(self._state, self._frozen, dealt)
    return metrics

  def probe(self, batches: Batches) -> Metrics:
    """As in `Program`."""
    return self._probe(self._state, self._frozen, parallel.deal(batches[0], self.devices))

  def apart(self, metrics: Metrics) -> list[Metrics]:
    """As in `Program`."""
    return [metrics]


class Beside(NamedTuple):
  """A learner among several."""

  state: TrainState
  frozen: Frozen
  teachers: tuple[Any, ...]  # what tells its teachers apart from those of others


class Together:
  """Several learners of one stage, dealt to the devices in their order."""

  def __init__(self, stage: Stage, devices: parallel.Devices, learners: Sequence[Beside]):
    """Takes the learners, as many as the devices or a multiple of them; compiles when it is called."""
    self.devices, self.learners = devices, len(learners)
    self._of_each = len(learners) // len(devices)
    self._state = self._deal([of.state for of in learners])
    self._frozen, axes = self._deal_frozen(learners)
    step = stage_lib.make_train_step(stage)
    self._step = parallel.compile_beside(self._of_device(step, axes), devices, axes)
    self._steps = parallel.compile_beside(self._of_device(parallel.in_a_row(step), axes), devices, axes)
    probe = self._of_device(stage_lib.make_probe(stage), axes)
    self._probe = parallel.compile_beside(probe, devices, axes, donate=False)

  def state(self, learner: int) -> TrainState:
    """As in `Program`; on its own device."""
    device, among = self._where(learner)
    own = lambda x: beside.part(x, self.devices[device])
    return jax.tree.map(lambda x: own(x) if among is None else own(x)[among], self._state)

  def train(self, batches: Sequence[Batches]) -> Metrics:
    """As in `Program`."""
    if len(batches) == 1:
      self._state, metrics = self._step(self._state, self._frozen, self._deal(batches[0]))
    else:
      rows = [beside.stack(own) for own in zip(*batches, strict=True)]
      self._state, metrics = self._steps(self._state, self._frozen, self._deal(rows))
    return metrics

  def probe(self, batches: Batches) -> Metrics:
    """As in `Program`."""
    return self._probe(self._state, self._frozen, self._deal(batches))

  def apart(self, metrics: Metrics) -> list[Metrics]:
    """As in `Program`."""
    places = [tuple(i for i in self._where(learner) if i is not None) for learner in range(self.learners)]
    return [jax.tree.map(lambda x, place=place: x[place], metrics) for place in places]

  def _where(self, learner: int) -> tuple[int, int | None]:
    """On which device a learner is, and which of those there; None where it is alone."""
    device, among = divmod(learner, self._of_each)
    return device, among if self._of_each > 1 else None

  def _of_device(self, pure: Any, axes: Frozen) -> Any:
    return pure if self._of_each == 1 else jax.vmap(pure, in_axes=(0, axes, 0))

  def _deal(self, trees: Sequence[Any]) -> Any:
    """One tree of arrays [devices, ...], or [devices, learners of each, ...]."""
    shape = (len(self.devices), self._of_each) if self._of_each > 1 else (len(self.devices),)
    stacked = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), beside.stack(trees))
    return beside.deal(stacked, self.devices)

  def _deal_frozen(self, learners: Sequence[Beside]) -> tuple[Frozen, Frozen]:
    """What the learners read, and along which axis each of it is theirs: None for what is the same for all."""
    first = learners[0].frozen
    shared = [len({of.teachers[i] for of in learners}) == 1 for i in range(len(first.teachers))]
    teachers = tuple(
      parallel.replicate(teacher, self.devices)
      if same
      else self._deal([of.frozen.teachers[i] for of in learners])
      for i, (teacher, same) in enumerate(zip(first.teachers, shared, strict=True))
    )
    reference = None if first.reference is None else self._deal([of.frozen.reference for of in learners])
    axes = Frozen(0, tuple(None if same else 0 for same in shared), None if reference is None else 0)  # type: ignore[arg-type]
    return Frozen(self._deal([of.frozen.key for of in learners]), teachers, reference), axes
