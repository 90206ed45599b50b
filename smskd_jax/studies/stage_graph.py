"""What a study will train: every stage of every variant and seed once, by its key, and what of it is there already."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.config import build
from smskd_jax.config import study_schema as config_lib
from smskd_jax.config.merge import drop_keys
from smskd_jax.data.dataset import Dataset
from smskd_jax.engine import estimates, plan
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.models import introspection
from smskd_jax.runtime import console
from smskd_jax.runtime.store import StageEntry, key_of


class StageNode(NamedTuple):
  """A stage, and all who need it."""

  plan: plan.StagePlan
  work: estimates.Work
  used_by: tuple[str, ...]  # variants, each once
  is_finished: bool


def variant_plans(
  config: Mapping[str, Any], dataset: Dataset, pretrained: Mapping[str, Pretrained]
) -> tuple[plan.StagePlan, ...]:
  """The stages of a variant; teachers that are not trained yet stand in with the shapes of their variables.

  Raises:
    UserError: as `plan.make_plans`.
  """
  networks = build.make_networks(config, len(dataset.class_names))
  begin_with = {}
  for name, entry in config["networks"].items():
    if entry["variables"] == config_lib.FROM_STUDY:
      shapes = introspection.variable_shapes(networks[name], dataset.image_shape)
      begin_with[name] = pretrained.get(name) or Pretrained(shapes, key_of({"teacher": name}), "")
    elif entry["variables"]:
      begin_with[name] = variables.load(f"config.networks.{name}.variables", entry["variables"], name)
  return plan.make_plans(config, dataset, begin_with)


def build_graph(
  study: Mapping[str, Any],
  load: Callable[..., Dataset],
  store: Path,
  pretrained: Mapping[str, Pretrained],
) -> dict[str, StageNode]:
  """Every stage of the study by its key, in the order in which they will be trained.

  Args:
    study: a resolved study.
    load: of a data section's fields, its data set.
    store: where finished stages lie.
    given: what is known of the teachers, by network.
  """
  found: dict[str, StageNode] = {}

  def add(user: str, config: Mapping[str, Any]) -> None:
    dataset = load(**drop_keys(config["data"], "extra_tests"))
    for planned in variant_plans(config, dataset, pretrained):
      known = found.get(planned.key)
      users = known.used_by if known else ()
      work = estimates.stage_work(planned, dataset)
      done = StageEntry(store, planned.key).state() == "in the store"
      found[planned.key] = StageNode(planned, work, tuple(dict.fromkeys((*users, user))), done)

  if study["teachers"]:
    add("teachers", study["teachers"])
  for seed in study["seeds"]:
    for name, variant in study["variants"].items():
      add(name, dict(variant) | {"seed": seed})
  return found


def describe(graph: Mapping[str, StageNode], study: Mapping[str, Any], speed: estimates.Speed | None) -> str:
  """The tree of stages of the first seed, and what all seeds cost together.

  Args:
    found: of `nodes`.
    study: the resolved study.
    speed: of the machine; None where nothing is known of it.
  """
  first = study["seeds"][0]
  of_first = {key: node for key, node in graph.items() if node.plan.description["seed"] == first}
  rows = [_row(node, of_first, speed) for node in of_first.values()]
  header = ("stage", "steps", "estimated time", "in the store", "variants")
  asked = sum(_num_requested_stages(study, variant) for variant in study["variants"].values()) * len(
    study["seeds"]
  )
  rest = [node for node in graph.values() if not node.is_finished]
  words = (
    f"{len(study['variants'])} variants, {len(study['seeds'])} seeds: {len(graph)} stages to train once each, "
    f"which the variants would call for {asked} times; {len(graph) - len(rest)} are in the store"
  )
  if rest:
    seconds = sum(speed.seconds(node.work) for node in rest) if speed else None
    words += f"; the others, one after another: {estimates.format_estimate(seconds)}"
  return f"seed {first}:\n\n{console.format_table(header, rows)}\n\n{words}\n"


def _num_requested_stages(study: Mapping[str, Any], variant: Mapping[str, Any]) -> int:
  """The stages of a variant, and of the teachers that it has."""
  before = study["teachers"]["stages"] if study["teachers"] else ()
  return sum(stage["network"] in variant["networks"] for stage in before) + len(variant["stages"])


def _row(
  node: StageNode, others: Mapping[str, StageNode], speed: estimates.Speed | None
) -> tuple[object, ...]:
  depth, parent = 0, node.plan.inputs.init
  while parent is not None and parent in others:
    depth, parent = depth + 1, others[parent].plan.inputs.init
  time = console.format_duration(speed.seconds(node.work)) if speed else ""
  users = ", ".join(node.used_by[:4]) + (
    f" and {len(node.used_by) - 4} more" if len(node.used_by) > 4 else ""
  )
  name = "  " * depth + node.plan.name
  return name, node.plan.loop_config.num_steps, time, "yes" if node.is_finished else "", users
