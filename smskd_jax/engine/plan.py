"""Plans of stages: networks, batches, inputs and keys, from a resolved config.

Trains and writes nothing.
"""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import types
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import numpy as np

from smskd_jax import custom, losses
from smskd_jax.config import build
from smskd_jax.config.merge import drop_keys
from smskd_jax.data.dataset import Dataset, content_bytes
from smskd_jax.errors import UserError, join_names
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.losses import contract, reduction
from smskd_jax.models import introspection
from smskd_jax.runtime import store
from smskd_jax.training import batches, carry_over, initialization, loop, statistics
from smskd_jax.training import stage as stage_lib
from smskd_jax.types import TrainState


class StageInputs(NamedTuple):
  """Keys of the stages that a stage reads."""

  init: str | None  # previous stage of the network, or its pretrained variables; None: from scratch
  teachers: tuple[str, ...]
  reference: str | None


class StagePlan(NamedTuple):
  """Everything that running a stage needs."""

  stage_index: int  # position in the experiment, from 0
  config: dict[str, Any]
  stage: stage_lib.Stage
  input_spec: batches.InputSpec
  loop_config: loop.LoopConfig
  inputs: StageInputs
  ancestors: tuple["StagePlan", ...]  # earlier stages of the network that this one starts from, in order
  origin: int  # index of the first of the stages that this one continues; its own index if it continues none
  description: dict[str, Any]  # everything that the result depends on; `key` is its hash
  key: str

  @property
  def name(self) -> str:
    """Name of the stage."""
    return self.config["name"]

  @property
  def changes_initial_variables(self) -> bool:
    """True if a method of the stage changes the network's variables before the first step."""
    return any(term.method.init_student is not None for term in self.stage.terms)


def make_plans(
  config: Mapping[str, Any],
  dataset: Dataset,
  pretrained: Mapping[str, Pretrained] = types.MappingProxyType({}),
) -> tuple[StagePlan, ...]:
  """Plans of all stages of a resolved config.

  Args:
    config: a resolved config.
    dataset: the data set.
    pretrained: variables of the networks that begin with some, by name.

  Raises:
    UserError: a method is not defined for its networks, a stage has less than a batch of images, or pretrained
      variables do not fit their network.
  """
  pretrained = {name: one.for_data(dataset.channel_stats) for name, one in pretrained.items()}
  networks = build.make_networks(config, len(dataset.class_names))
  for name, network in networks.items():
    build.check_network(f"config.networks.{name}", network, config["networks"][name]["model"], dataset)
  for name, one in pretrained.items():
    expected = introspection.variable_shapes(networks[name], dataset.image_shape)
    path = f"config.networks.{name}.variables"
    variables.check_fits(path, one.variables, expected, one.network)
  plans: list[StagePlan] = []
  stats = {name: one.normalization for name, one in pretrained.items()}
  current = networks | build.renormalize(networks, stats, dataset)  # after each network's last stage so far
  for i, entry in enumerate(config["stages"]):
    path = f"config.stages[{i}]"
    inputs = _stage_inputs(entry, plans, pretrained)
    ancestors = _ancestors(inputs, plans)
    origin, first_epoch = _origin(i, entry, ancestors)
    input_spec = _input_spec(path, config, entry, dataset, first_epoch)
    stage_networks = _stage_networks(entry, inputs, plans, networks, current)
    stage = build.make_stage(path, entry, input_spec.steps_per_epoch, stage_networks, dataset, first_epoch)
    current[entry["network"]] = stage_networks.student
    description = _describe(config, i, entry, dataset, inputs, pretrained)
    loop_config, key = _loop_config(config, entry, input_spec), store.key_of(description)
    plans.append(
      StagePlan(i, entry, stage, input_spec, loop_config, inputs, ancestors, origin, description, key)
    )
    _check_methods(path, plans[-1], dataset)
  return tuple(plans)


def abstract_state(plan: StagePlan, dataset: Dataset) -> TrainState:
  """Shapes of a stage's initial state."""
  stage, shape = plan.stage, dataset.image_shape
  student = introspection.variable_shapes(stage.student, shape)
  teachers = tuple(introspection.variable_shapes(network, shape) for network in stage.teachers)
  image = introspection.image_spec(shape)
  specs = statistics.statistics_spec(stage, teachers, image, statistics_labels(plan))
  init = functools.partial(initialization.init_state, stage, image=image, labels=dataset.train.label)
  return jax.eval_shape(
    lambda key, v, t, s: init(key, v, t, statistics=s), jax.random.key(0), student, teachers, specs
  )


def statistics_labels(plan: StagePlan) -> np.ndarray:
  """Labels of the images that a stage trains on, which its statistics cover: [m], int32."""
  images = plan.input_spec.images
  return images.label[images.indices]


def _check_methods(path: str, plan: StagePlan, dataset: Dataset) -> None:
  """Traces the initial state of a stage and the losses of a user's own methods.

  Raises:
    UserError: a method is not defined for the networks, or breaks the contract of a method.
  """
  stage, shape = plan.stage, dataset.image_shape
  networks = (stage.student, *stage.teachers)
  student, *teachers = (introspection.variable_shapes(network, shape) for network in networks)
  for i, name in enumerate(method["name"] for method in plan.config["methods"]):
    if not custom.is_custom(name):
      continue
    try:
      initialization.check_term(
        stage, i, student, teachers, introspection.image_spec(shape), dataset.train.label
      )
    except Exception as error:  # a user's own code may raise anything
      known = isinstance(error, initialization.TermError)
      text = custom.first_paragraph(error) if known else custom.describe_error(error, name)
      raise UserError(f"{path}.methods[{i}]: {name}: {text}") from error
  try:
    abstract_state(plan, dataset)
  except ValueError as error:
    raise UserError(f"{path}: {error}{_suggest_methods(plan, dataset)}") from error


def _suggest_methods(plan: StagePlan, dataset: Dataset) -> str:
  """Names of methods that are defined for a student and its teacher, for an error.

  Returns '' unless a method of the stage is undefined for them with its default options too.
  """
  stage, image = plan.stage, introspection.image_spec(dataset.image_shape)
  if len(stage.teachers) != 1:
    return ""  # the number of teachers is the mistake
  networks = (stage.student, *stage.teachers)
  values = (introspection.variable_shapes(network, dataset.image_shape) for network in networks)
  student, *teachers = map(initialization.output_spec, networks, values, (image, image))

  def is_defined(name: str) -> bool:
    method, labels, outputs = losses.METHODS[name](), dataset.train.label, tuple(teachers)

    def init(key: jax.Array, statistics: Any) -> Any:
      return contract.init_method(method, key, student, outputs, labels, statistics)

    try:
      shapes = reduction.statistics_shapes(method.statistics, outputs, labels)
      jax.eval_shape(init, jax.random.key(0), shapes)
    except ValueError:
      return False
    return True

  names = [method["name"] for method in plan.config["methods"] if not custom.is_custom(method["name"])]
  if all(map(is_defined, names)):
    return ""
  traits = {name: make() for name, make in losses.METHODS.items()}
  defined = [
    name for name, one in traits.items() if one.needs_teacher and one.min_views == 1 and is_defined(name)
  ]
  return f"; methods for these networks are {join_names(defined)}"


def _origin(index: int, entry: Mapping[str, Any], ancestors: Sequence[StagePlan]) -> tuple[int, int]:
  """(index of the first of the stages that a stage continues, epochs of all of these)."""
  if entry["carry_over"] != carry_over.ALL:
    return index, 0
  previous = ancestors[-1]
  return previous.origin, previous.input_spec.epochs


def _input_spec(
  path: str, config: Mapping[str, Any], entry: Mapping[str, Any], dataset: Dataset, first_epoch: int
) -> batches.InputSpec:
  seed, max_images = config["data"]["split_seed"], entry["max_images"]

  def unlabeled_images(count: int = 0) -> batches.ImageSubset:
    assert dataset.unlabeled is not None  # config/validate.py checks this
    return batches.unlabeled_subset(dataset.unlabeled, len(dataset.train.label), count, seed)

  try:
    if entry["images"] == "unlabeled":
      images = unlabeled_images(max_images)
    else:
      images = batches.labeled_subset(dataset.train, max_images, seed)
  except ValueError as error:
    raise UserError(f"{path}.{error}") from error
  batch_size, unlabeled_batch_size = entry["batch_size"], entry["unlabeled_batch_size"]
  steps_per_epoch = len(images.indices) // batch_size
  if not steps_per_epoch:
    raise UserError(
      f"{path}.batch_size: {batch_size}, but there are only {len(images.indices)} training images"
    )
  if entry["epochs"] * steps_per_epoch >= 2**31:
    raise UserError(
      f"{path}.epochs: {entry['epochs']} of {steps_per_epoch:,} steps each are more than the {2**31 - 1:,} steps that "
      "a stage can count"
    )
  unlabeled = unlabeled_images() if unlabeled_batch_size else None
  return batches.InputSpec(
    images,
    batch_size,
    first_epoch + entry["epochs"],
    steps_per_epoch,
    unlabeled,
    unlabeled_batch_size,
    num_workers=config["num_workers"],
  )


def _loop_config(
  config: Mapping[str, Any], entry: Mapping[str, Any], input_spec: batches.InputSpec
) -> loop.LoopConfig:
  return loop.LoopConfig(
    epochs=entry["epochs"],
    first_step=(input_spec.epochs - entry["epochs"]) * input_spec.steps_per_epoch,
    batch_size=input_spec.images_per_step,
    steps_per_epoch=input_spec.steps_per_epoch,
    evaluate_every_epochs=config["evaluate"]["every_epochs"],
    checkpoint_every_steps=config["checkpoint"]["every_steps"],
    log_every_steps=config["log_every_steps"],
    probe_every_steps=config["probe_every_steps"],
    steps_per_call=config["steps_per_call"],
  )


def _stage_inputs(
  entry: Mapping[str, Any], earlier: list[StagePlan], pretrained: Mapping[str, Pretrained]
) -> StageInputs:
  """Inputs of a stage: of each network its last stage so far, or its pretrained variables."""
  last = {name: one.key for name, one in pretrained.items()}
  last |= {plan.config["network"]: plan.key for plan in earlier}
  by_name = {plan.name: plan.key for plan in earlier}
  reference_name, previous = entry["reference"]["stage"], last.get(entry["network"])
  keys = {"none": None, "previous": previous} | by_name
  return StageInputs(
    init=previous if entry["init"] == "previous" else None,
    teachers=tuple(last[name] for name in entry["teachers"]),
    reference=keys[reference_name],
  )


def _stage_networks(
  entry: Mapping[str, Any],
  inputs: StageInputs,
  earlier: list[StagePlan],
  initial: Mapping[str, nn.Module],
  current: Mapping[str, nn.Module],
) -> build.StageNetworks:
  """Networks of a stage, each with the input normalization of its variables."""
  name, reference_name = entry["network"], entry["reference"]["stage"]
  by_name = {"none": None, "previous": current[name]} | {plan.name: plan.stage.student for plan in earlier}
  student = initial[name] if inputs.init is None else current[name]
  return build.StageNetworks(
    student, tuple(current[teacher] for teacher in entry["teachers"]), by_name[reference_name]
  )


def _ancestors(inputs: StageInputs, earlier: list[StagePlan]) -> tuple[StagePlan, ...]:
  """Earlier stages of the network that a stage starts from.

  Pretrained variables are no stage.
  """
  previous = next((plan for plan in earlier if plan.key == inputs.init), None)
  return (*previous.ancestors, previous) if previous is not None else ()


def _describe(
  config: Mapping[str, Any],
  index: int,
  entry: Mapping[str, Any],
  dataset: Dataset,
  inputs: StageInputs,
  pretrained: Mapping[str, Pretrained],
) -> dict[str, Any]:
  """Everything that a stage's result depends on; the stage's key is the hash.

  Names are left out, to share stages.
  """
  stage = drop_keys(entry, "name", "network", "teachers", "init")
  return {
    "stage": stage | {"reference": drop_keys(entry["reference"], "stage") if inputs.reference else None},
    "network": _describe_network(config["networks"][entry["network"]]),
    "seed": config["seed"],
    "stage_index": index,
    "data": _describe_data(config["data"], entry, dataset),
    "evaluate": drop_keys(config["evaluate"], "batch_size"),
    "inputs": inputs._asdict(),
    **_describe_methods(entry),
    **_describe_pretrained(config, entry, inputs, pretrained),
  }


# Fields of the data that the fingerprint of the images covers.
_FINGERPRINT_FIELDS = ("source", "image_size", "streamed", "min_crop_area", "center_crop_fraction")


def _describe_data(data: Mapping[str, Any], entry: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
  """Data that a stage trains on: labeled images, and unlabeled ones if the stage reads them."""
  described: dict[str, Any] = {"fingerprint": dataset.fingerprint}
  described |= drop_keys(data, *_FINGERPRINT_FIELDS, "folder", "unlabeled", "extra_tests")
  if dataset.unlabeled is not None and (entry["images"] == "unlabeled" or entry["unlabeled_batch_size"]):
    described["unlabeled"] = hashlib.sha256(content_bytes(dataset.unlabeled)).hexdigest()
  return described


def _describe_network(entry: Mapping[str, Any]) -> dict[str, Any]:
  code = {"code": custom.code_digest(entry["model"])} if custom.is_custom(entry["model"]) else {}
  return drop_keys(entry, "variables") | code


def _describe_methods(entry: Mapping[str, Any]) -> dict[str, Any]:
  """Digests of the code of a user's own methods."""
  names = [method["name"] for method in entry["methods"] if custom.is_custom(method["name"])]
  return {"method_code": {name: custom.code_digest(name) for name in names}} if names else {}


def _describe_pretrained(
  config: Mapping[str, Any],
  entry: Mapping[str, Any],
  inputs: StageInputs,
  pretrained: Mapping[str, Pretrained],
) -> dict[str, Any]:
  """Networks of pretrained teachers, which the keys of their variables do not cover."""
  keys = {one.key for one in pretrained.values()}
  pairs = zip(entry["teachers"], inputs.teachers, strict=True)
  found = {key: _describe_network(config["networks"][name]) for name, key in pairs if key in keys}
  return {"pretrained": found} if found else {}
