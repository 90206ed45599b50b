"""The losses of a learner's earlier stages on held-out images: what a later stage keeps of them and what it loses."""

from collections.abc import Callable, Mapping
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.engine.plan import StagePlan, abstract_state
from smskd_jax.runtime import checkpoint, integrity, parallel, store
from smskd_jax.training import evaluate, stage_losses
from smskd_jax.training.stage_losses import StageLossInputs
from smskd_jax.types import Batch, TrainState


class EarlierStage(NamedTuple):
  """An earlier stage, ready to be asked."""

  losses: Callable[..., dict[str, jax.Array]]  # compiled: (learner's variables, lesson, batch)
  inputs: StageLossInputs  # on the devices
  batches: list[Batch]  # split over the devices


def save_method_state(entry: store.StageEntry, state: TrainState) -> None:
  """Writes what the methods of a stage have learned, for its losses to be computed again in later stages.

  Where a stage ends with the state best by validation, this is of its last all the same.
  """
  leaves = jax.tree.leaves(_method_variables(state))
  store.write_arrays(entry.method_state, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})


def load_method_state(entry: store.StageEntry, plan: StagePlan, dataset: Dataset) -> tuple[Any, Any]:
  """Parameters and state of a finished stage's methods, as `keep` wrote them."""
  structure = jax.tree.structure(_method_variables(abstract_state(plan, dataset)))
  kept = integrity.read_arrays(entry.verified(entry.method_state))
  return jax.tree.unflatten(structure, [kept[str(i)] for i in range(len(kept))])


class EarlierStageLosses:
  """Computes earlier stages' losses; keeps their compiled programs and what they read."""

  def __init__(self, dataset: Dataset, devices: parallel.Devices, settings: Mapping[str, Any], folder: Path):
    """Takes the config's section `evaluate` and the store's folder; computes nothing yet."""
    self._dataset, self._devices, self._store = dataset, devices, folder
    self._index = evaluate.evenly_spaced(settings["num_forgetting_images"], len(dataset.test.label))
    self._normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    self._stages: dict[str, EarlierStage | None] = {}
    self._teachers: dict[str, Any] = {}

  def evaluate(self, plan: StagePlan, variables: Any) -> dict[str, float]:
    """By 'test/earlier_I_loss/TERM', the mean losses of what a stage goes on from; the first of these is 1.

    Left out are methods that know the training images alone or need several views, stages of which the store does
    not have what their methods learned, and the last images, fewer than a batch of that stage.
    """
    found: dict[str, float] = {}
    for i, earlier in enumerate(plan.ancestors, start=1):
      if earlier.key not in self._stages:
        self._stages[earlier.key] = self._make(earlier)
      asked = self._stages[earlier.key]
      if asked is not None:
        values = [jax.device_get(asked.losses(variables, asked.inputs, batch)) for batch in asked.batches]
        mean = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
        found |= {f"test/earlier_{i}_loss/{name}": value for name, value in mean.items()}
    return found

  def _make(self, plan: StagePlan) -> EarlierStage | None:
    entry = store.StageEntry(self._store, plan.key)
    methods = [term.method for term in plan.stage.terms]
    terms = [i for i, of in enumerate(methods) if not of.per_example_memory and of.min_views == 1]
    batches = self._batches(plan.config["batch_size"])
    if not terms or not batches or not entry.method_state.is_file():
      return None
    params, state = parallel.replicate(load_method_state(entry, plan, self._dataset), self._devices)
    pure = stage_losses.make_stage_losses(plan.stage, terms, self._normalize, parallel.AXIS)
    compiled = parallel.compile_probe(pure, self._devices)
    return EarlierStage(compiled, StageLossInputs(params, state, self._load_teachers(plan)), batches)

  def _batches(self, size: int) -> list[Batch]:
    """The images asked about, in batches as a stage had them."""
    count, test = len(self._devices), self._dataset.test
    size = min(size, len(self._index) // count * count)
    if not size:
      return []
    pieces = np.split(self._index[: len(self._index) // size * size], len(self._index) // size)
    return [
      parallel.shard(Batch(*jax.tree.map(jnp.asarray, (test.image[i], test.label[i], i))), self._devices)
      for i in pieces
    ]

  def _load_teachers(self, plan: StagePlan) -> tuple[Any, ...]:
    for key in plan.inputs.teachers:
      if key not in self._teachers:
        entry = store.StageEntry(self._store, key)
        variables = checkpoint.load_variables(entry.verified(entry.final))
        self._teachers[key] = parallel.replicate(variables, self._devices)
    return tuple(self._teachers[key] for key in plan.inputs.teachers)


def _method_variables(state: TrainState) -> tuple[Any, Any]:
  """What of a state belongs to the methods."""
  return state.params["methods"], state.method_state
