"""From a config to what will run: networks, stages and their keys. Trains nothing, writes nothing."""

from collections.abc import Mapping, Sequence
import functools
import hashlib
import types
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax import custom
from smskd_jax.config import build
from smskd_jax.config.merge import drop_keys
from smskd_jax.data.dataset import Dataset, content_bytes
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.models import introspection
from smskd_jax.runtime import store
from smskd_jax.training import batches, carry_over, initialization, loop
from smskd_jax.training import stage as stage_lib
from smskd_jax.types import TrainState


class StageInputs(NamedTuple):
  """The keys of the stages that a stage reads."""

  init: str | None  # the learner's previous stage; None: it starts from scratch
  teachers: tuple[str, ...]
  reference: str | None


class StagePlan(NamedTuple):
  """One stage, ready to run."""

  stage_index: int  # in the experiment, from 0
  config: dict[str, Any]
  stage: stage_lib.Stage
  input_spec: batches.InputSpec
  loop_config: loop.LoopConfig
  inputs: StageInputs
  ancestors: tuple["StagePlan", ...]  # the learner's stages that this one goes on from, the first first
  origin: (
    int  # `place` of the first of the stages that this one continues; of one that continues none, its own
  )
  description: dict[str, Any]  # what its key is the hash of
  key: str

  @property
  def name(self) -> str:
    """How reports call it."""
    return self.config["name"]


def make_plans(
  config: Mapping[str, Any],
  dataset: Dataset,
  pretrained: Mapping[str, Pretrained] = types.MappingProxyType({}),
) -> tuple[StagePlan, ...]:
  """The stages of a resolved config on a data set, each with its key.

  Args:
    config: a resolved config.
    dataset: what is trained on.
    given: the variables of networks that begin with some, by name.

  Raises:
    UserError: a method is not defined for its networks, a stage has less than a batch of images, or the given
      variables are not of their network.
  """
  pretrained = {name: of_network.for_data(dataset.channel_stats) for name, of_network in pretrained.items()}
  networks = build.make_networks(config, len(dataset.class_names))
  for name, network in networks.items():
    build.check_network(f"config.networks.{name}", network, config["networks"][name]["model"], dataset)
  for name, of_network in pretrained.items():
    expected = introspection.variable_shapes(networks[name], dataset.image_shape)
    field = f"config.networks.{name}.variables"
    variables.check_fits(field, of_network.variables, expected, of_network.network)
  plans: list[StagePlan] = []
  now = networks | build.renormalize(
    networks, {name: one.normalization for name, one in pretrained.items()}, dataset
  )  # as each network's last stage so far has left them
  for i, entry in enumerate(config["stages"]):
    field = f"config.stages[{i}]"
    reads = _stage_inputs(entry, plans, pretrained)
    past = _ancestors(reads, plans)
    origin, first_epoch = _origin(i, entry, past)
    drawing = _input_spec(field, config, entry, dataset, first_epoch)
    own = _stage_networks(entry, reads, plans, networks, now)
    stage = build.make_stage(field, entry, drawing.steps_per_epoch, own, dataset, first_epoch)
    now[entry["network"]] = own.student
    description = _describe(config, i, entry, dataset, reads, pretrained)
    budget, key = _loop_config(config, entry, drawing), store.key_of(description)
    plans.append(StagePlan(i, entry, stage, drawing, budget, reads, past, origin, description, key))
    _check_methods(field, plans[-1], dataset)
  return tuple(plans)


def abstract_state(plan: StagePlan, dataset: Dataset) -> TrainState:
  """The shapes of a stage's state, without computing it."""
  stage, shape = plan.stage, dataset.image_shape
  of_learner = introspection.variable_shapes(stage.student, shape)
  of_teachers = tuple(introspection.variable_shapes(network, shape) for network in stage.teachers)
  init = functools.partial(
    initialization.init_state, stage, image=introspection.image_spec(shape), labels=dataset.train.label
  )
  return jax.eval_shape(lambda key, v, t: init(key, v, t), jax.random.key(0), of_learner, of_teachers)


def _check_methods(field: str, plan: StagePlan, dataset: Dataset) -> None:
  """Traces the initial state of a stage, and the losses of a user's own methods."""
  stage, shape = plan.stage, dataset.image_shape
  networks = (stage.student, *stage.teachers)
  of_learner, *of_teachers = (introspection.variable_shapes(network, shape) for network in networks)
  for i, name in enumerate(method["name"] for method in plan.config["methods"]):
    if not custom.is_custom(name):
      continue
    try:
      initialization.check_term(
        stage, i, of_learner, of_teachers, introspection.image_spec(shape), dataset.train.label
      )
    except Exception as error:  # a user's own code may raise anything
      known = isinstance(error, initialization.TermError)
      told = custom.first_paragraph(error) if known else custom.describe_error(error, name)
      raise UserError(f"{field}.methods[{i}]: {name}: {told}") from error
  try:
    abstract_state(plan, dataset)
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error


def _origin(index: int, entry: Mapping[str, Any], past: Sequence[StagePlan]) -> tuple[int, int]:
  """The place of the first of the stages that a stage continues, and the epochs of them all."""
  if entry["carry_over"] != carry_over.ALL:
    return index, 0
  before = past[-1]
  return before.origin, before.input_spec.epochs


def _input_spec(
  field: str, config: Mapping[str, Any], entry: Mapping[str, Any], dataset: Dataset, first_epoch: int
) -> batches.InputSpec:
  seed, most = config["data"]["split_seed"], entry["max_images"]

  def without_labels(count: int = 0) -> batches.ImageSubset:
    assert dataset.unlabeled is not None  # config/validate.py has seen to it
    return batches.unlabeled_subset(dataset.unlabeled, len(dataset.train.label), count, seed)

  try:
    if entry["images"] == "unlabeled":
      images = without_labels(most)
    else:
      images = batches.labeled_subset(dataset.train, most, seed)
  except ValueError as error:
    raise UserError(f"{field}.{error}") from error
  size, beside = entry["batch_size"], entry["unlabeled_batch_size"]
  steps_per_epoch = len(images.indices) // size
  if not steps_per_epoch:
    raise UserError(f"{field}.batch_size: {size}, but there are only {len(images.indices)} training images")
  if entry["epochs"] * steps_per_epoch >= 2**31:
    raise UserError(
      f"{field}.epochs: {entry['epochs']} of {steps_per_epoch:,} steps each are more than the {2**31 - 1:,} steps that "
      "a stage can count"
    )
  others = without_labels() if beside else None
  return batches.InputSpec(
    images,
    size,
    first_epoch + entry["epochs"],
    steps_per_epoch,
    others,
    beside,
    num_workers=config["num_workers"],
  )


def _loop_config(
  config: Mapping[str, Any], entry: Mapping[str, Any], drawing: batches.InputSpec
) -> loop.LoopConfig:
  return loop.LoopConfig(
    epochs=entry["epochs"],
    first_step=(drawing.epochs - entry["epochs"]) * drawing.steps_per_epoch,
    batch_size=drawing.images_per_step,
    steps_per_epoch=drawing.steps_per_epoch,
    evaluate_every_epochs=config["evaluate"]["every_epochs"],
    checkpoint_every_steps=config["checkpoint"]["every_steps"],
    log_every_steps=config["log_every_steps"],
    probe_every_steps=config["probe_every_steps"],
    steps_per_call=config["steps_per_call"],
  )


def _stage_inputs(
  entry: Mapping[str, Any], earlier: list[StagePlan], given: Mapping[str, Pretrained]
) -> StageInputs:
  """What a stage reads: of each network, what its last stage so far has left, or what it was given."""
  last = {name: of_network.key for name, of_network in given.items()}
  last |= {plan.config["network"]: plan.key for plan in earlier}
  by_name = {plan.name: plan.key for plan in earlier}
  anchor, own = entry["reference"]["stage"], last.get(entry["network"])
  reference = None if anchor == "none" else own if anchor == "previous" else by_name[anchor]
  return StageInputs(
    init=own if entry["init"] == "previous" else None,
    teachers=tuple(last[name] for name in entry["teachers"]),
    reference=reference,
  )


def _stage_networks(
  entry: Mapping[str, Any],
  reads: StageInputs,
  earlier: list[StagePlan],
  fresh: Mapping[str, nn.Module],
  now: Mapping[str, nn.Module],
) -> build.StageNetworks:
  """The networks of a stage, each fed by the normalisation of the variables that it begins with."""
  name, anchor = entry["network"], entry["reference"]["stage"]
  by_name = {"none": None, "previous": now[name]} | {plan.name: plan.stage.student for plan in earlier}
  learner = fresh[name] if reads.init is None else now[name]
  return build.StageNetworks(learner, tuple(now[teacher] for teacher in entry["teachers"]), by_name[anchor])


def _ancestors(reads: StageInputs, earlier: list[StagePlan]) -> tuple[StagePlan, ...]:
  """The stages that one goes on from. Variables that were given are the beginning, and no stage."""
  before = next((plan for plan in earlier if plan.key == reads.init), None)
  return (*before.ancestors, before) if before is not None else ()


def _describe(
  config: Mapping[str, Any],
  index: int,
  entry: Mapping[str, Any],
  dataset: Dataset,
  inputs: StageInputs,
  given: Mapping[str, Pretrained],
) -> dict[str, Any]:
  """What a stage's result depends on. Names are left out: what does the same shares a key."""
  own = drop_keys(entry, "name", "network", "teachers", "init")
  return {
    "stage": own | {"reference": drop_keys(entry["reference"], "stage") if inputs.reference else None},
    "network": _describe_network(config["networks"][entry["network"]]),
    "seed": config["seed"],
    "place": index,
    "data": _describe_data(config["data"], entry, dataset),
    "evaluate": drop_keys(config["evaluate"], "batch_size"),
    "inputs": inputs._asdict(),
    **_describe_methods(entry),
    **_describe_pretrained(config, entry, inputs, given),
  }


# Fields of the data that change the images, and so their fingerprint.
_FINGERPRINT_FIELDS = ("source", "image_size", "streamed", "min_crop_area", "center_crop_fraction")


def _describe_data(data: Mapping[str, Any], entry: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
  """The labelled images; the others where the stage sees them. What is only tested on trains nothing."""
  described: dict[str, Any] = {"fingerprint": dataset.fingerprint}
  described |= drop_keys(data, *_FINGERPRINT_FIELDS, "folder", "unlabeled", "extra_tests")
  if dataset.unlabeled is not None and (entry["images"] == "unlabeled" or entry["unlabeled_batch_size"]):
    described["unlabeled"] = hashlib.sha256(content_bytes(dataset.unlabeled)).hexdigest()
  return described


def _describe_network(entry: Mapping[str, Any]) -> dict[str, Any]:
  code = {"code": custom.code_digest(entry["model"])} if custom.is_custom(entry["model"]) else {}
  return drop_keys(entry, "variables") | code


def _describe_methods(entry: Mapping[str, Any]) -> dict[str, Any]:
  """The code of a user's own methods."""
  names = [method["name"] for method in entry["methods"] if custom.is_custom(method["name"])]
  return {"method_code": {name: custom.code_digest(name) for name in names}} if names else {}


def _describe_pretrained(
  config: Mapping[str, Any], entry: Mapping[str, Any], reads: StageInputs, given: Mapping[str, Pretrained]
) -> dict[str, Any]:
  """What computes with variables that no stage has trained: their key says nothing of it."""
  keys = {of_network.key for of_network in given.values()}
  read = zip(entry["teachers"], reads.teachers, strict=True)
  found = {key: _describe_network(config["networks"][name]) for name, key in read if key in keys}
  return {"given": found} if found else {}
