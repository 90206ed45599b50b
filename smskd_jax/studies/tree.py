"""What a study will train: every stage of every variant and seed once, by its key, and what of it is there already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax import build, estimates, plan
from smskd_jax.data.dataset import Dataset
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Given
from smskd_jax.filling import options
from smskd_jax.models import spec
from smskd_jax.runtime import console
from smskd_jax.runtime.store import Entry, key_of
from smskd_jax.studies import config as config_lib


class Node(NamedTuple):
  """A stage, and all who need it."""

  plan: plan.Plan
  work: estimates.Work
  users: tuple[str, ...]  # variants, each once
  finished: bool


def plans_of(
  config: Mapping[str, Any], dataset: Dataset, given: Mapping[str, Given]
) -> tuple[plan.Plan, ...]:
  """The stages of a variant; teachers that are not trained yet stand in with the shapes of their variables.

  Raises:
    UserError: as `plan.make_plans`.
  """
  networks = build.make_networks(config, len(dataset.class_names))
  begin_with = {}
  for name, entry in config["networks"].items():
    if entry["variables"] == config_lib.GIVEN:
      shapes = spec.variables(networks[name], dataset.image_shape)
      begin_with[name] = given.get(name) or Given(shapes, key_of({"teacher": name}), "")
    elif entry["variables"]:
      begin_with[name] = variables.load(f"config.networks.{name}.variables", entry["variables"], name)
  return plan.make_plans(config, dataset, begin_with)


def nodes(
  study: Mapping[str, Any],
  load: Callable[..., Dataset],
  store: Path,
  given: Mapping[str, Given],
) -> dict[str, Node]:
  """Every stage of the study by its key, in the order in which they will be trained.

  Args:
    study: a resolved study.
    load: of a data section's fields, its data set.
    store: where finished stages lie.
    given: what is known of the teachers, by network.
  """
  found: dict[str, Node] = {}

  def add(user: str, config: Mapping[str, Any]) -> None:
    dataset = load(**options(config["data"], "extra_tests"))
    for planned in plans_of(config, dataset, given):
      known = found.get(planned.key)
      users = known.users if known else ()
      work = estimates.work_of(planned, dataset)
      done = Entry(store, planned.key).state() == "in the store"
      found[planned.key] = Node(planned, work, tuple(dict.fromkeys((*users, user))), done)

  if study["teachers"]:
    add("teachers", study["teachers"])
  for seed in study["seeds"]:
    for name, variant in study["variants"].items():
      add(name, dict(variant) | {"seed": seed})
  return found


def describe(found: Mapping[str, Node], study: Mapping[str, Any], speed: estimates.Speed | None) -> str:
  """The tree of stages of the first seed, and what all seeds cost together.

  Args:
    found: of `nodes`.
    study: the resolved study.
    speed: of the machine; None where nothing is known of it.
  """
  first = study["seeds"][0]
  of_first = {key: node for key, node in found.items() if node.plan.description["seed"] == first}
  rows = [_row(node, of_first, speed) for node in of_first.values()]
  header = ("stage", "steps", "estimated time", "in the store", "variants")
  asked = sum(_asked(study, variant) for variant in study["variants"].values()) * len(study["seeds"])
  rest = [node for node in found.values() if not node.finished]
  words = (
    f"{len(study['variants'])} variants, {len(study['seeds'])} seeds: {len(found)} stages to train once each, "
    f"which the variants would call for {asked} times; {len(found) - len(rest)} are in the store"
  )
  if rest:
    seconds = sum(speed.seconds(node.work) for node in rest) if speed else None
    words += f"; the others, one after another: {estimates.in_words(seconds)}"
  return f"seed {first}:\n\n{console.table(header, rows)}\n\n{words}\n"


def _asked(study: Mapping[str, Any], variant: Mapping[str, Any]) -> int:
  """The stages of a variant, and of the teachers that it has."""
  before = study["teachers"]["stages"] if study["teachers"] else ()
  return sum(stage["learner"] in variant["networks"] for stage in before) + len(variant["stages"])


def _row(node: Node, others: Mapping[str, Node], speed: estimates.Speed | None) -> tuple[object, ...]:
  depth, parent = 0, node.plan.reads.start
  while parent is not None and parent in others:
    depth, parent = depth + 1, others[parent].plan.reads.start
  time = console.duration(speed.seconds(node.work)) if speed else ""
  users = ", ".join(node.users[:4]) + (f" and {len(node.users) - 4} more" if len(node.users) > 4 else "")
  name = "  " * depth + node.plan.name
  return name, node.plan.budget.steps, time, "yes" if node.finished else "", users
