"""From a config to what will run: networks, stages and their keys. Trains nothing, writes nothing."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import losses, models
from smskd_jax.config import METHOD, PLUGIN
from smskd_jax.data import augment
from smskd_jax.data.dataset import Dataset
from smskd_jax.errors import UserError
from smskd_jax.filling import options
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
    networks[name] = models.MODELS[entry["model"]](
      num_classes=classes, **options(entry, "model", "num_classes")
    )
  return networks


def make_plans(config: Mapping[str, Any], dataset: Dataset) -> tuple[Plan, ...]:
  """The stages of a resolved config on a data set, each with its key.

  Raises:
    UserError: a method is not defined for its networks, or a stage has less than a batch of images.
  """
  networks = make_networks(config, len(dataset.class_names))
  plans: list[Plan] = []
  for i, entry in enumerate(config["stages"]):
    field = f"config.stages[{i}]"
    budget = _budget(field, config, entry, len(dataset.train.label))
    stage = _make_stage(entry, budget, networks, dataset)
    reads = _reads(entry, plans)
    description = _describe(config, i, entry, dataset, reads)
    plans.append(Plan(i, entry, stage, budget, reads, description, store.key_of(description)))
    try:
      abstract_state(plans[-1], dataset)
    except ValueError as error:
      raise UserError(f"{field}: {error}") from error
  return tuple(plans)


def image_spec(dataset: Dataset, batch_size: int = 1) -> jax.ShapeDtypeStruct:
  """The shape of what networks see."""
  return jax.ShapeDtypeStruct((batch_size, *dataset.train.image.shape[1:]), jnp.float32)


def abstract_variables(network: nn.Module, dataset: Dataset) -> Any:
  """The shapes of a network's variables."""
  return jax.eval_shape(network.init, jax.random.key(0), image_spec(dataset))


def abstract_state(plan: Plan, dataset: Dataset) -> TrainState:
  """The shapes of a stage's state, without computing it."""
  stage = plan.stage
  variables = abstract_variables(stage.learner, dataset)
  teachers = tuple(abstract_variables(network, dataset) for network in stage.teachers)
  init = functools.partial(initial.init_state, stage, image=image_spec(dataset), labels=dataset.train.label)
  return jax.eval_shape(lambda key, v, t: init(key, v, t), jax.random.key(0), variables, teachers)


def forward_flops(network: nn.Module, dataset: Dataset) -> float:
  """Floating-point operations of a forward pass on one image, a multiply-add being two."""
  forward = lambda variables, image: stage_lib.outputs(network, variables, image).logits
  lowered = jax.jit(forward).lower(abstract_variables(network, dataset), image_spec(dataset))
  analysis: Any = lowered.cost_analysis()
  return float(analysis["flops"])


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


def _reads(entry: Mapping[str, Any], earlier: list[Plan]) -> Reads:
  """What a stage reads: of each network, what its last stage so far has left."""
  last = {plan.config["learner"]: plan.key for plan in earlier}
  by_name = {plan.name: plan.key for plan in earlier}
  anchor, own = entry["reference"]["stage"], last.get(entry["learner"])
  reference = None if anchor == "none" else own if anchor == "previous" else by_name[anchor]
  return Reads(
    start=own if entry["start"] == "previous" else None,
    teachers=tuple(last[name] for name in entry["teachers"]),
    reference=reference,
  )


def _describe(
  config: Mapping[str, Any], place: int, entry: Mapping[str, Any], dataset: Dataset, reads: Reads
) -> dict[str, Any]:
  """What a stage's result depends on. Names are left out: what does the same shares a key."""
  own = options(entry, "name", "learner", "teachers", "start")
  return {
    "stage": own | {"reference": options(entry["reference"], "stage") if reads.reference else None},
    "network": config["networks"][entry["learner"]],
    "seed": config["seed"],
    "place": place,
    "data": {"fingerprint": dataset.fingerprint, **options(config["data"], "source", "folder")},
    "evaluate": options(config["evaluate"], "batch_size"),
    "reads": reads._asdict(),
  }
