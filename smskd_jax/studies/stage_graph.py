"""Stages of a study as a graph: every stage of every variant and seed once, by key.

Each stage has its state in the store.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from smskd_jax.config import build
from smskd_jax.config.merge import drop_keys
from smskd_jax.config.study_schema import FROM_STUDY
from smskd_jax.data.dataset import Dataset
from smskd_jax.engine import plan, summary
from smskd_jax.exchange import variables
from smskd_jax.exchange.variables import Pretrained
from smskd_jax.models import introspection
from smskd_jax.runtime import console
from smskd_jax.runtime.store import StageEntry, key_of

MAX_LISTED = 4  # variants in a row of the printed graph


class StageNode(NamedTuple):
  """A stage and the variants that contain it."""

  plan: plan.StagePlan
  work: summary.Work
  used_by: tuple[str, ...]  # names of variants, or 'teachers'
  is_finished: bool  # True if the store has its result


def variant_plans(
  config: Mapping[str, Any], dataset: Dataset, pretrained: Mapping[str, Pretrained]
) -> tuple[plan.StagePlan, ...]:
  """Plans of a variant's stages.

  Teachers that are not trained yet are represented by the shapes of their variables.

  Args:
    config: resolved experiment of the variant.
    dataset: its data.
    pretrained: variables of the study's trained teachers by network name.

  Raises:
    UserError: as `plan.make_plans`.
  """
  networks = build.make_networks(config, len(dataset.class_names))
  initial = {}
  for name, entry in config["networks"].items():
    if entry["variables"] == FROM_STUDY:
      shapes = introspection.variable_shapes(networks[name], dataset.image_shape)
      initial[name] = pretrained.get(name) or Pretrained(shapes, key_of({"teacher": name}), "")
    elif entry["variables"]:
      initial[name] = variables.load(f"config.networks.{name}.variables", entry["variables"], name)
  return plan.make_plans(config, dataset, initial)


def build_graph(
  study: Mapping[str, Any],
  load: Callable[..., Dataset],
  store: Path,
  pretrained: Mapping[str, Pretrained],
) -> dict[str, StageNode]:
  """Every stage of a study by key, in the order of training.

  Args:
    study: resolved study.
    load: function from the fields of section `data` to a data set.
    store: folder of finished stages.
    pretrained: variables of the study's trained teachers by network name.
  """
  graph: dict[str, StageNode] = {}

  def add(user: str, config: Mapping[str, Any]) -> None:
    dataset = load(**drop_keys(config["data"], "extra_tests"))
    for stage_plan in variant_plans(config, dataset, pretrained):
      key = stage_plan.key
      used_by = (*graph[key].used_by, user) if key in graph else (user,)
      is_finished = StageEntry(store, key).state() == "in the store"
      work = summary.stage_work(stage_plan, dataset)
      graph[key] = StageNode(stage_plan, work, tuple(dict.fromkeys(used_by)), is_finished)

  if study["teachers"]:
    add("teachers", study["teachers"])
  for seed in study["seeds"]:
    for name, variant in study["variants"].items():
      add(name, dict(variant) | {"seed": seed})
  return graph


def describe(graph: Mapping[str, StageNode], study: Mapping[str, Any], speed: summary.Speed | None) -> str:
  """Table of the first seed's stages.

  Also the number of stages and the estimated time of all seeds.

  Args:
    graph: of `build_graph`.
    study: resolved study.
    speed: of this machine; None: unknown.
  """
  seed, num_seeds = study["seeds"][0], len(study["seeds"])
  seed_nodes = {key: node for key, node in graph.items() if node.plan.description["seed"] == seed}
  rows = [_table_row(node, seed_nodes, speed) for node in seed_nodes.values()]
  header = ("stage", "steps", "estimated time", "in the store", "variants")
  requested = num_seeds * sum(_num_requested_stages(study, one) for one in study["variants"].values())
  remaining = [node for node in graph.values() if not node.is_finished]
  text = (
    f"{len(study['variants'])} variants, {num_seeds} seeds: {len(graph)} stages to train once each, "
    f"which the variants would call for {requested} times; {len(graph) - len(remaining)} are in the store"
  )
  if remaining:
    seconds = sum(speed.seconds(node.work) for node in remaining) if speed else None
    text += f"; the others, one after another: {summary.format_estimate(seconds)}"
  return f"seed {seed}:\n\n{console.format_table(header, rows)}\n\n{text}\n"


def _num_requested_stages(study: Mapping[str, Any], variant: Mapping[str, Any]) -> int:
  """Number of stages of a variant and of its teachers."""
  teacher_stages = study["teachers"]["stages"] if study["teachers"] else ()
  return len(variant["stages"]) + sum(stage["network"] in variant["networks"] for stage in teacher_stages)


def _table_row(
  node: StageNode, nodes: Mapping[str, StageNode], speed: summary.Speed | None
) -> tuple[object, ...]:
  depth, parent = 0, node.plan.inputs.init
  while parent is not None and parent in nodes:
    depth, parent = depth + 1, nodes[parent].plan.inputs.init
  time = console.format_duration(speed.seconds(node.work)) if speed else ""
  variants, num_hidden = ", ".join(node.used_by[:MAX_LISTED]), len(node.used_by) - MAX_LISTED
  if num_hidden > 0:
    variants += f" and {num_hidden} more"
  name = "  " * depth + node.plan.name
  return name, node.plan.loop_config.num_steps, time, "yes" if node.is_finished else "", variants
