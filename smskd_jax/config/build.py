"""Construction of networks, methods, views and stages from a resolved config."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import custom, losses, models
from smskd_jax.config.merge import drop_keys
from smskd_jax.config.schema import NETWORK
from smskd_jax.data import augment, mixing, views
from smskd_jax.data.dataset import ChannelStats, Dataset
from smskd_jax.errors import UserError
from smskd_jax.models import introspection, renormalized
from smskd_jax.training import optimizer, schedule, targets
from smskd_jax.training import stage as stage_lib
from smskd_jax.training.reference import Reference


def make_networks(config: Mapping[str, Any], num_classes: int) -> dict[str, nn.Module]:
  """Networks by name.

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


def renormalize(
  networks: Mapping[str, nn.Module], stats: Mapping[str, ChannelStats | None], dataset: Dataset
) -> dict[str, nn.Module]:
  """Networks that normalize their inputs by their own statistics.

  Args:
    networks: by name.
    stats: normalization that a pretrained network was trained with, by its name; None: that of the data set.
    dataset: whose images the networks get, normalized by its own statistics.

  Returns:
    The networks of `stats`, by name.
  """
  return {name: renormalized.make(networks[name], own, dataset.channel_stats) for name, own in stats.items()}


class StageNetworks(NamedTuple):
  """Networks of a stage, each with its own input normalization."""

  student: nn.Module
  teachers: tuple[nn.Module, ...]
  reference: nn.Module | None = None


def make_network(entry: Mapping[str, Any], num_classes: int) -> nn.Module:
  """Network of a resolved entry."""
  return models.factory(entry["model"])(num_classes=num_classes, **drop_keys(entry, *NETWORK))


def check_network(field: str, network: nn.Module, model: str, dataset: Dataset) -> None:
  """Checks a network by tracing it on the data set's images.

  Raises:
    UserError: the network does not take these images or classes, or breaks the contract of a network.
  """
  try:
    introspection.check_outputs(network, dataset.image_shape, len(dataset.class_names))
  except Exception as error:
    if not custom.is_custom(model) and not isinstance(error, ValueError):
      raise
    # A user's own code may raise anything.
    raise UserError(f"{field}: {model}: {custom.first_paragraph(error)}") from error


def make_stage(
  field: str,
  entry: Mapping[str, Any],
  steps_per_epoch: int,
  networks: StageNetworks,
  dataset: Dataset,
  first_epoch: int = 0,
) -> stage_lib.Stage:
  """Stage of a resolved entry.

  Args:
    field: path of the entry, for messages.
    entry: the entry.
    steps_per_epoch: for schedules in epochs.
    networks: of the stage.
    dataset: the data set.
    first_epoch: epochs of the stages that this stage continues.

  Raises:
    UserError: an option of a view has a bad value.
  """
  options = entry["optimizer"]
  rate = schedule.make(
    peak=_learning_rate(entry),
    steps_per_epoch=steps_per_epoch,
    epochs=entry["epochs"],
    first_epoch=first_epoch,
    **entry["schedule"],
  )
  return stage_lib.Stage(
    student=networks.student,
    optimizer=optimizer.make(schedule=rate, **drop_keys(options, "learning_rate", "base_batch_size")),
    teachers=networks.teachers,
    reference_network=networks.reference,
    terms=_make_terms(entry["methods"]),
    task_weight=entry["task_weight"],
    label_smoothing=entry["label_smoothing"],
    reference=None
    if entry["reference"]["stage"] == "none"
    else Reference(**drop_keys(entry["reference"], "stage")),
    steps_per_epoch=steps_per_epoch,
    separate_distill_gradient=options["name"] in optimizer.SEPARATE_GRADIENT_OPTIMIZERS,
    views=tuple(_make_view(f"{field}.augment", v, entry["augment"], dataset) for v in entry["views"]),
    mix=_make_mix(entry["mix"], len(dataset.class_names)),
    ema_decay=entry["ema_decay"],
    trainable=entry["trainable"],
    alternate_epochs=entry["alternate_epochs"],
    all_examples_labeled=entry["images"] == "train" and not entry["unlabeled_batch_size"],
    teacher_statistics=entry["teacher_statistics"],
    view_index_fn=make_view_index_fn(field, entry),
  )


def _learning_rate(entry: Mapping[str, Any]) -> float:
  """Learning rate by the linear scaling rule, if the optimizer's entry has a base batch size.

  Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677, section 2.1.
  Unlabeled images are not counted.
  """
  options = entry["optimizer"]
  images = entry["batch_size"] * options["accumulate_steps"]
  return options["learning_rate"] * (
    images / options["base_batch_size"] if options["base_batch_size"] else 1.0
  )


def _make_terms(methods: tuple[Mapping[str, Any], ...]) -> tuple[stage_lib.Term, ...]:
  terms: list[stage_lib.Term] = []
  for i, entry in enumerate(methods):
    name = losses.metric_name(entry["name"])
    count = sum(losses.metric_name(earlier["name"]) == name for earlier in methods[:i])
    unique_name = f"{name}_{count + 1}" if count else name
    terms.append(
      stage_lib.Term(unique_name, entry["weight"], losses.build_method(entry), entry["warmup_epochs"])
    )
  return tuple(terms)


def _make_view(field: str, name: str, settings: Mapping[str, Any], dataset: Dataset):
  make_image = views.make_view(name, settings)
  image_spec = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  try:  # tracing raises for a bad option
    jax.eval_shape(
      lambda x, i: make_image(jax.random.key(0), x, i), image_spec, jax.ShapeDtypeStruct((1,), jnp.int32)
    )
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error

  def view(key, batch):
    image = make_image(key, batch.image, batch.index)
    # Views of float type are noise, which is not normalized.
    return augment.normalize(image, dataset.mean, dataset.std) if image.dtype == jnp.uint8 else image

  return view


def make_view_index_fn(field: str, entry: Mapping[str, Any]):
  """Function (key, batch) -> view indices [b] for a stage with a teacher cache.

  None for other stages.
  """
  if entry["teacher_cache"] == "off":
    return None
  view = enumerable_view(field, entry)
  return lambda key, batch: view.sample_index(key, batch.index)


def enumerable_view(field: str, entry: Mapping[str, Any]) -> views.EnumerableView:
  """Enumerable view of a stage with a teacher cache.

  Raises:
    UserError: an option of the view has a bad value.
  """
  name = entry["views"][0]
  try:
    return views.ENUMERABLE_VIEWS[name](**entry["augment"].get(name, {}))
  except ValueError as error:
    raise UserError(f"{field}.augment: {error}") from error


def _make_mix(entry: Mapping[str, Any], num_classes: int):
  """Function that mixes the images of a view and their labels, or None."""
  if entry["name"] == "none":
    return None
  mix = functools.partial(mixing.MIXES[entry["name"]], **drop_keys(entry, "name"))

  def mixed(key, image, label, axis_name):
    image, target = mix(
      key, image, targets.soft_labels(targets.Targets(label), num_classes), axis_name=axis_name
    )
    larger = jnp.where(jnp.sum(target, axis=-1) > 0, jnp.argmax(target, axis=-1), targets.IGNORE_LABEL)
    return image, targets.Targets(larger, target)

  return mixed
