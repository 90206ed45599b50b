"""From the entries of a config to what they name: networks, methods, views, stages."""

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
  """The networks of a stage, each with the normalisation of its own images."""

  student: nn.Module
  teachers: tuple[nn.Module, ...]
  reference: nn.Module | None = None


def make_network(entry: Mapping[str, Any], num_classes: int) -> nn.Module:
  """The network of a filled entry."""
  return models.factory(entry["model"])(num_classes=num_classes, **drop_keys(entry, *NETWORK))


def check_network(field: str, network: nn.Module, model: str, dataset: Dataset) -> None:
  """Traces a network on the data set's images.

  Raises:
    UserError: it is not one for these images and classes, or keeps not to the contract of a network.
  """
  try:
    introspection.check_outputs(network, dataset.image_shape, len(dataset.class_names))
  except Exception as error:
    if not custom.is_custom(model) and not isinstance(error, ValueError):
      raise
    # A user's own code raises what it likes.
    raise UserError(f"{field}: {model}: {custom.first_paragraph(error)}") from error


def make_stage(
  field: str,
  entry: Mapping[str, Any],
  steps_per_epoch: int,
  networks: StageNetworks,
  dataset: Dataset,
  first_epoch: int = 0,
) -> stage_lib.Stage:
  """The stage of a filled entry.

  Args:
    field: of the entry, for messages.
    entry: the entry.
    steps_per_epoch: for what is scheduled in epochs.
    networks: of the stage.
    dataset: whose images it sees.
    first_epoch: epochs of the stages that it continues, which its count of steps goes on from.

  Raises:
    UserError: a view's option is bad.
  """
  anchor = drop_keys(entry["reference"], "stage")
  of_rate, optimiser = entry["schedule"], entry["optimizer"]
  rate = schedule.make(
    peak=_learning_rate(entry),
    steps_per_epoch=steps_per_epoch,
    epochs=entry["epochs"],
    first_epoch=first_epoch,
    **of_rate,
  )
  return stage_lib.Stage(
    student=networks.student,
    optimizer=optimizer.make(schedule=rate, **drop_keys(optimiser, "learning_rate", "base_batch_size")),
    teachers=networks.teachers,
    reference_network=networks.reference,
    terms=_make_terms(entry["methods"]),
    task_weight=entry["task_weight"],
    label_smoothing=entry["label_smoothing"],
    reference=None if entry["reference"]["stage"] == "none" else Reference(**anchor),
    steps_per_epoch=steps_per_epoch,
    separate_distill_gradient=optimiser["name"] in optimizer.SEPARATE_GRADIENT_OPTIMIZERS,
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
  """The linear scaling rule, where a stage's rate is meant for a number of images.

  Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", arXiv 1706.02677, section 2.1.
  Images without labels, which only distil, are not counted.
  """
  of = entry["optimizer"]
  images = entry["batch_size"] * of["accumulate_steps"]
  return of["learning_rate"] * (images / of["base_batch_size"] if of["base_batch_size"] else 1.0)


def _make_terms(methods: tuple[Mapping[str, Any], ...]) -> tuple[stage_lib.Term, ...]:
  terms: list[stage_lib.Term] = []
  for i, entry in enumerate(methods):
    name = losses.metric_name(entry["name"])
    again = sum(losses.metric_name(earlier["name"]) == name for earlier in methods[:i])
    label = f"{name}_{again + 1}" if again else name
    terms.append(stage_lib.Term(label, entry["weight"], losses.build_method(entry), entry["warmup_epochs"]))
  return tuple(terms)


def _make_view(field: str, name: str, settings: Mapping[str, Any], dataset: Dataset):
  made = views.make_view(name, settings)
  image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.uint8)
  try:  # a bad option shows where the view is traced
    jax.eval_shape(lambda x, i: made(jax.random.key(0), x, i), image, jax.ShapeDtypeStruct((1,), jnp.int32))
  except ValueError as error:
    raise UserError(f"{field}: {error}") from error

  def view(key, batch):
    seen = made(key, batch.image, batch.index)
    # What is not of whole numbers is not of pixels: noise, which needs no scale.
    return augment.normalize(seen, dataset.mean, dataset.std) if seen.dtype == jnp.uint8 else seen

  return view


def make_view_index_fn(field: str, entry: Mapping[str, Any]):
  """Which of its finitely many views an image is seen in, where the teachers' answers to them are kept; else None."""
  if entry["teacher_cache"] == "off":
    return None
  of = enumerable_view(field, entry)
  return lambda key, batch: of.sample_index(key, batch.index)


def enumerable_view(field: str, entry: Mapping[str, Any]) -> views.EnumerableView:
  """The finitely many views of a stage whose teachers' answers are kept.

  Raises:
    UserError: an option of the view is bad.
  """
  name = entry["views"][0]
  try:
    return views.ENUMERABLE_VIEWS[name](**entry["augment"].get(name, {}))
  except ValueError as error:
    raise UserError(f"{field}.augment: {error}") from error


def _make_mix(entry: Mapping[str, Any], num_classes: int):
  """What mixes the images of a view, or None."""
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
