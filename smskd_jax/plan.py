"""From a config to what will run: networks, stages and their keys. Trains nothing, writes nothing."""

from collections.abc import Mapping
import functools
import types
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax import losses, models
from smskd_jax.config import METHOD, NETWORK, PLUGIN
from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.errors import UserError
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Given
from smskd_jax.filling import options
from smskd_jax.models import custom, spec
from smskd_jax.runtime import store
from smskd_jax.state import TrainState
from smskd_jax.training import initial, loop, optimizer
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.reference import Reference


class Reads(NamedTuple):
  """The keys of the stages that a stage reads."""

  start: str | None  # the learner's previous stage; None: it starts from scratch
  teachers: tuple[str, ...]
  reference: str | None


class Plan(NamedTuple):
  """One stage, ready to run."""

  place: int  # in the experiment, from 0
  config: dict[str, Any]
  stage: stage_lib.Stage
  budget: loop.Budget
  reads: Reads
  description: dict[str, Any]  # what its key is the hash of
  key: str

  @property
  def name(self) -> str:
    """How reports call it."""
    return self.config["name"]


def make_networks(config: Mapping[str, Any], num_classes: int) -> dict[str, nn.Module]:
  """The networks by name.

  Raises:
    UserError: one has another number of classes than the data.
  """
  networks = {}
  for name, entry in config["networks"].items():
    classes = entry["num_classes"] or num_classes
    if classes != num_classes:
      raise UserError(
        f"config.networks.{name}.num_classes: {classes}, but the data has {num_classes} classes; "
        "0 means as many as the data, and teachers and students must have the same"
      )
    networks[name] = make_network(entry, num_classes)
  return networks


def make_network(entry: Mapping[str, Any], num_classes: int) -> nn.Module:
  """The network of a filled entry."""
  return models.factory(entry["model"])(num_classes=num_classes, **options(entry, *NETWORK))


def _check_network(field: str, network: nn.Module, model: str, dataset: Dataset) -> None:
  try:
    spec.check_outputs(network, dataset.image_shape, len(dataset.class_names))
  except Exception as error:
    if not custom.is_custom(model) and not isinstance(error, ValueError):
      raise
    # A user's own code raises what it likes.
    first = " ".join(str(error).split("\n\n")[0].split())
    raise UserError(f"{field}: {model}: {first}") from error


def make_plans(
  config: Mapping[str, Any], dataset: Dataset, given: Mapping[str, Given] = types.MappingProxyType({})
) -> tuple[Plan, ...]:
  """The stages of a resolved config on a data set, each with its key.

  Args:
    config: a resolved config.
    dataset: what is trained on.
    given: the variables of networks that begin with some, by name.

  Raises:
    UserError: a method is not defined for its networks, a stage has less than a batch of images, or the given
      variables are not of their network.
  """
  networks = make_networks(config, len(dataset.class_names))
  for name, network in networks.items():
    _check_network(f"config.networks.{name}", network, config["networks"][name]["model"], dataset)
  for name, of_network in given.items():
    expected = spec.variables(networks[name], dataset.image_shape)
    variables.check_fits(f"config.networks.{name}.variables", of_network.variables, expected)
  plans: list[Plan] = []
  for i, entry in enumerate(config["stages"]):
    field = f"config.stages[{i}]"
    budget = _budget(field, config, entry, len(dataset.train.label))
    stage = _make_stage(entry, budget, networks, dataset)
    reads = _reads(entry, plans, given)
    description = _describe(config, i, entry, dataset, reads, given)
    plans.append(Plan(i, entry, stage, budget, reads, description, store.key_of(description)))
    try:
      abstract_state(plans[-1], dataset)
    except ValueError as error:
      raise UserError(f"{field}: {error}") from error
  return tuple(plans)


def abstract_state(plan: Plan, dataset: Dataset) -> TrainState:
  """The shapes of a stage's state, without computing it."""
  stage, shape = plan.stage, dataset.image_shape
  of_learner = spec.variables(stage.learner, shape)
  of_teachers = tuple(spec.variables(network, shape) for network in stage.teachers)
  init = functools.partial(initial.init_state, stage, image=spec.image(shape), labels=dataset.train.label)
  return jax.eval_shape(lambda key, v, t: init(key, v, t), jax.random.key(0), of_learner, of_teachers)


def _budget(
  field: str, config: Mapping[str, Any], entry: Mapping[str, Any], num_examples: int
) -> loop.Budget:
  steps_per_epoch = num_examples // entry["batch_size"]
  if not steps_per_epoch:
    raise UserError(
      f"{field}.batch_size: {entry['batch_size']}, but there are only {num_examples} training images"
    )
  return loop.Budget(
    epochs=entry["epochs"],
    batch_size=entry["batch_size"],
    steps_per_epoch=steps_per_epoch,
    evaluate_every_epochs=config["evaluate"]["every_epochs"],
    checkpoint_every_steps=config["checkpoint"]["every_steps"],
    log_every_steps=config["log_every_steps"],
  )


def _make_stage(
  entry: Mapping[str, Any], budget: loop.Budget, networks: Mapping[str, nn.Module], dataset: Dataset
) -> stage_lib.Stage:
  anchor = options(entry["reference"], "stage")
  schedule, optimiser = entry["schedule"], entry["optimizer"]
  rate = optimizer.SCHEDULES[schedule["name"]](
    optimiser["learning_rate"], budget.steps_per_epoch, budget.epochs, **options(schedule, "name")
  )
  return stage_lib.Stage(
    learner=networks[entry["learner"]],
    optimizer=optimizer.OPTIMIZERS[optimiser["name"]](rate, **options(optimiser, "name", "learning_rate")),
    teachers=tuple(networks[name] for name in entry["teachers"]),
    terms=_make_terms(entry["methods"]),
    task_weight=entry["task_weight"],
    reference=None if entry["reference"]["stage"] == "none" else Reference(**anchor),
    steps_per_epoch=budget.steps_per_epoch,
    two_gradients=optimiser["name"] in optimizer.OF_TWO_GRADIENTS,
    view=_make_view(entry["augment"], dataset),
  )


def _make_terms(methods: tuple[Mapping[str, Any], ...]) -> tuple[stage_lib.Term, ...]:
  terms: list[stage_lib.Term] = []
  for i, entry in enumerate(methods):
    name, again = entry["name"], sum(earlier["name"] == entry["name"] for earlier in methods[:i])
    label = f"{name}_{again + 1}" if again else name
    terms.append(stage_lib.Term(label, entry["weight"], make_method(entry), entry["warmup_epochs"]))
  return tuple(terms)


def make_method(entry: Mapping[str, Any]) -> losses.Method:
  """The method of a filled entry, inside its plug-ins."""
  method = losses.METHODS[entry["name"]](**options(entry, *METHOD))
  for plugin in reversed(entry["plugins"]):
    method = losses.PLUGINS[plugin["name"]](method, **options(plugin, *PLUGIN))
  return method


def _make_view(settings: Mapping[str, Any], dataset: Dataset):
  def view(key, batch):
    image = augment.crop_flip(key, batch.image, batch.index, **settings)
    return augment.normalize(image, dataset.mean, dataset.std)

  return view


def _reads(entry: Mapping[str, Any], earlier: list[Plan], given: Mapping[str, Given]) -> Reads:
  """What a stage reads: of each network, what its last stage so far has left, or what it was given."""
  last = {name: of_network.key for name, of_network in given.items()}
  last |= {plan.config["learner"]: plan.key for plan in earlier}
  by_name = {plan.name: plan.key for plan in earlier}
  anchor, own = entry["reference"]["stage"], last.get(entry["learner"])
  reference = None if anchor == "none" else own if anchor == "previous" else by_name[anchor]
  return Reads(
    start=own if entry["start"] == "previous" else None,
    teachers=tuple(last[name] for name in entry["teachers"]),
    reference=reference,
  )


def _describe(
  config: Mapping[str, Any],
  place: int,
  entry: Mapping[str, Any],
  dataset: Dataset,
  reads: Reads,
  given: Mapping[str, Given],
) -> dict[str, Any]:
  """What a stage's result depends on. Names are left out: what does the same shares a key."""
  own = options(entry, "name", "learner", "teachers", "start")
  return {
    "stage": own | {"reference": options(entry["reference"], "stage") if reads.reference else None},
    "network": _describe_network(config["networks"][entry["learner"]]),
    "seed": config["seed"],
    "place": place,
    "data": {"fingerprint": dataset.fingerprint, **options(config["data"], "source", "folder")},
    "evaluate": options(config["evaluate"], "batch_size"),
    "reads": reads._asdict(),
    **_describe_given(config, entry, reads, given),
  }


def _describe_network(entry: Mapping[str, Any]) -> dict[str, Any]:
  code = {"code": custom.code_digest(entry["model"])} if custom.is_custom(entry["model"]) else {}
  return options(entry, "variables") | code


def _describe_given(
  config: Mapping[str, Any], entry: Mapping[str, Any], reads: Reads, given: Mapping[str, Given]
) -> dict[str, Any]:
  """What computes with variables that no stage has trained: their key says nothing of it."""
  keys = {of_network.key for of_network in given.values()}
  read = zip(entry["teachers"], reads.teachers, strict=True)
  found = {key: _describe_network(config["networks"][name]) for name, key in read if key in keys}
  return {"given": found} if found else {}
