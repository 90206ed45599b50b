"""Losses of earlier stages, computed again for the current student on test images.

A value relative to the value at the end of the earlier stage shows how much of that stage's objective a later stage
keeps.
"""

from collections.abc import Callable, Collection, Mapping
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.engine.plan import StagePlan, abstract_state
from smskd_jax.losses.contract import Context, pmean
from smskd_jax.runtime import checkpoint, integrity, parallel, store
from smskd_jax.training import evaluate
from smskd_jax.training.stage import Stage, frozen_outputs, make_segments, teacher_forward
from smskd_jax.types import Batch, TrainState


class StageLossInputs(NamedTuple):
  """All that a stage's distillation losses read besides the student and the batch."""

  params: tuple[Any, ...]  # of the methods, one entry per term
  state: tuple[Any, ...]  # of the methods, one entry per term
  teachers: tuple[Any, ...]  # variables


def make_stage_losses(
  stage: Stage,
  terms: Collection[int],
  normalize: Callable[[jax.Array], jax.Array],
  axis_name: str | None = None,
) -> Callable[[Any, StageLossInputs, Batch], dict[str, jax.Array]]:
  """Pure function (student's variables, inputs, batch) -> mean loss of each term.

  Losses are by the term's name.

  Images are not augmented. The student uses running batch-norm statistics, the teachers those that the stage uses.
  Parameters and states of the methods do not change. Weights of terms are left out; relational losses are those of a
  batch of this size.

  Args:
    stage: the earlier stage.
    terms: indices of the terms. A method that compares several views gets one view.
    normalize: uint8 images -> inputs of the networks.
    axis_name: axis of devices over which the batch is split.
  """
  forward = teacher_forward(stage, axis_name)

  def losses(variables: Any, inputs: StageLossInputs, batch: Batch) -> dict[str, jax.Array]:
    image = normalize(batch.image)
    pairs = zip(stage.teachers, inputs.teachers, strict=True)
    teachers = tuple(forward(network, variables, image) for network, variables in pairs)
    student = frozen_outputs(stage.student, variables, image)
    values = {}
    for i in terms:
      method = stage.terms[i].method
      context = Context(batch, jax.random.key(i), jnp.zeros(()), axis_name)
      if method.reads_segments:
        context = context._replace(segments=make_segments(stage, variables, inputs.teachers, image))
      per_example, _ = method.apply(inputs.params[i], inputs.state[i], student, teachers, context)
      values[stage.terms[i].name] = jnp.mean(per_example)
    return pmean(values, axis_name)

  return losses


class EarlierStage(NamedTuple):
  """Compiled losses of an earlier stage and their inputs."""

  losses: Callable[..., dict[str, jax.Array]]  # (student's variables, inputs, batch) -> losses
  inputs: StageLossInputs  # on the devices
  batches: list[Batch]  # split over the devices


def save_method_state(entry: store.StageEntry, state: TrainState) -> None:
  """Writes parameters and states of a stage's methods into method_state.npz.

  The values are those after the stage's last step.
  """
  leaves = jax.tree.leaves(_method_variables(state))
  store.write_arrays(entry.method_state, {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)})


def load_method_state(entry: store.StageEntry, plan: StagePlan, dataset: Dataset) -> tuple[Any, Any]:
  """Parameters and states of a finished stage's methods, as `save_method_state` wrote them.

  Raises:
    DamagedFileError: the file is damaged.
  """
  structure = jax.tree.structure(_method_variables(abstract_state(plan, dataset)))
  arrays = integrity.read_arrays(entry.verified(entry.method_state))
  return jax.tree.unflatten(structure, [arrays[str(i)] for i in range(len(arrays))])


class EarlierStageLosses:
  """Computes the losses of earlier stages.

  Keeps compiled functions and their inputs between evaluations.
  """

  def __init__(self, dataset: Dataset, devices: parallel.Devices, settings: Mapping[str, Any], folder: Path):
    """Computes nothing.

    Args:
      dataset: its test set is used.
      devices: to compute on.
      settings: section `evaluate` of the config.
      folder: the store.
    """
    self._dataset, self._devices, self._store = dataset, devices, folder
    self._index = evaluate.evenly_spaced(settings["num_forgetting_images"], len(dataset.test.label))
    self._normalize = functools.partial(augment.normalize, mean=dataset.mean, std=dataset.std)
    self._stages: dict[str, EarlierStage | None] = {}
    self._teachers: dict[str, Any] = {}

  def evaluate(self, plan: StagePlan, variables: Any) -> dict[str, float]:
    """Mean losses of the ancestors of a stage, by 'test/earlier_I_loss/TERM' with I from 1.

    Left out are methods with a memory of the training images or that need several views, stages whose method
    variables are not in the store, and the last images that do not fill a batch.
    """
    found: dict[str, float] = {}
    for i, ancestor in enumerate(plan.ancestors, start=1):
      if ancestor.key not in self._stages:
        self._stages[ancestor.key] = self._make(ancestor)
      stage = self._stages[ancestor.key]
      if stage is not None:
        values = [jax.device_get(stage.losses(variables, stage.inputs, batch)) for batch in stage.batches]
        means = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
        found |= {f"test/earlier_{i}_loss/{name}": value for name, value in means.items()}
    return found

  def _make(self, plan: StagePlan) -> EarlierStage | None:
    entry = store.StageEntry(self._store, plan.key)
    methods = [term.method for term in plan.stage.terms]
    terms = [i for i, one in enumerate(methods) if not one.per_example_memory and one.min_views == 1]
    batches = self._batches(plan.config["batch_size"])
    if not terms or not batches or not entry.method_state.is_file():
      return None
    params, state = parallel.replicate(load_method_state(entry, plan, self._dataset), self._devices)
    losses = make_stage_losses(plan.stage, terms, self._normalize, parallel.AXIS)
    compiled = parallel.compile_probe(losses, self._devices)
    return EarlierStage(compiled, StageLossInputs(params, state, self._load_teachers(plan)), batches)

  def _batches(self, batch_size: int) -> list[Batch]:
    """Test images in batches of the stage's size, split over the devices."""
    count, test = len(self._devices), self._dataset.test
    size = min(batch_size, len(self._index) // count * count)
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
        variables = checkpoint.load_final(self._store, key)
        self._teachers[key] = parallel.replicate(variables, self._devices)
    return tuple(self._teachers[key] for key in plan.inputs.teachers)


def _method_variables(state: TrainState) -> tuple[Any, Any]:
  return state.params["methods"], state.method_state
