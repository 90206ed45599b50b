"""Tests of stages that take over state of the previous stage."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import runs
from smskd_jax.config import method, resolve, stage
from smskd_jax.engine import experiment
from smskd_jax.engine.plan import make_plans
from smskd_jax.errors import UserError
from smskd_jax.runtime import checkpoint
from smskd_jax.training import carry_over, optimizer

METHOD = method("fitnet", weight=0.1, warmup_epochs=3.0)
SHARED = {"name": "multistep", "milestones": (0.25, 0.75), "total_epochs": 4}


def config(*parts):
  """Stages of the student with the given epochs, on one schedule, each continuing the last."""
  base = runs.tiny()
  teacher = base.stages[0]
  stages, start_epoch = [], 0
  for epochs in parts:
    stages.append(
      stage(
        "student",
        teachers=("teacher",),
        methods=(METHOD,),
        epochs=epochs,
        batch_size=128,
        augment={"crop_flip": {"padding": 1, "flip": False}},
        schedule=SHARED | {"start_epoch": start_epoch},
        carry_over="all" if start_epoch else "variables",
      )
    )
    start_epoch += epochs
  return runs.tiny(stages=(teacher, *stages), log_every_steps=1000)  # metrics once per epoch


def run(workdir, *parts, store):
  return experiment.run(config(*parts), workdir, store=store, cpu_devices=2)["stages"][1:]


def losses_of(store, stages):
  """The training losses of all stages, one per epoch."""
  losses = []
  for result in stages:
    lines = (store / result["key"] / "metrics.jsonl").read_text().splitlines()
    losses += [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
  return losses


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("carry_over")
  return folder / "store", run(folder / "whole", 4, store=folder / "store"), folder


def final_digest(store, result):
  return checkpoint.tree_digest(checkpoint.load_variables(store / result["key"] / "final"))


@pytest.mark.parametrize("parts", [(2, 2), pytest.param((1, 1, 2), marks=pytest.mark.slow)])
def test_a_stage_in_parts_equals_the_whole_stage_bit_for_bit(whole, parts):
  store, (one_stage,), folder = whole
  several = run(folder / f"parts_{parts}", *parts, store=store)
  assert final_digest(store, several[-1]) == final_digest(store, one_stage)
  losses = losses_of(store, several)
  assert losses == losses_of(store, [one_stage]) and len(losses) == 4
  last = several[-1]["metrics"]["last"]
  assert last["test/accuracy"] == one_stage["metrics"]["last"]["test/accuracy"]
  assert last["epoch"] == several[-1]["epochs"] == parts[-1], "epochs are those of the stage"


def test_configs_share_an_equal_first_part(whole):
  keys = {
    parts: [plan.key for plan in make_plans(resolve(config(*parts)), experiment.data.load("digits"))]
    for parts in ((2, 2), (2, 1, 1))
  }
  assert keys[2, 2][:2] == keys[2, 1, 1][:2] and keys[2, 2][2] != keys[2, 1, 1][2]


def merge_states(mode, name="sgd", **options):
  """(last state of a stage, new state of the next stage, merged state) of an optimizer."""
  # A module of the network has the name of the group of the methods' parameters.
  params = {"student": {"methods": {"w": jnp.ones(3)}}, "methods": ({"r": jnp.ones(2)},)}
  sgd = optimizer.make(name, optax.constant_schedule(0.1), **options)
  _, last = sgd.update(jax.tree.map(jnp.ones_like, params), sgd.init(params), params)
  new = sgd.init({"student": params["student"], "methods": ()} if mode == "optimizer" else params)
  return last, new, carry_over._merge(new, carry_over.flatten_opt_state(last), everything=mode == "all")


def counts(state, kind):
  leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
  return [int(leaf.count) for leaf in leaves if isinstance(leaf, kind)]


@pytest.mark.parametrize(("name", "options"), [("sgd", {}), ("adam", {}), ("sgd", {"clip_norm": 1.0})])
def test_momentum_is_carried_and_the_schedule_starts_anew(name, options):
  last, _, merged = merge_states("optimizer", name, **options)
  saved = carry_over.flatten_opt_state(last)
  for path, leaf in carry_over.flatten_opt_state(merged).items():
    if "student" in path:
      np.testing.assert_array_equal(leaf, saved[path], err_msg=path)
      assert np.any(leaf)
  assert counts(merged, optax.ScaleByScheduleState) == [0]
  assert counts(merged, optax.ScaleByAdamState) == ([1] if name == "adam" else [])


def test_a_continued_stage_takes_over_the_whole_state():
  last, _, merged = merge_states("all")
  jax.tree.map(np.testing.assert_array_equal, last, merged)


BEFORE = {"epochs": 3, "schedule": SHARED}
AFTER = {"epochs": 1, "schedule": SHARED | {"start_epoch": 3}, "methods": (METHOD,)}
ALL = AFTER | {"carry_over": "all"}


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    (BEFORE, AFTER | {"epochs": 2}, r"stages\[2\].schedule: total_epochs: 4, but the stage has the epochs 3 to 5"),
    (BEFORE, AFTER | {"schedule": SHARED | {"start_epoch": 2}}, r"start_epoch: 2, but the stages .* end at epoch 3"),
    (BEFORE, AFTER | {"schedule": {"name": "multistep"}}, "'student' use 3 of the 4 epochs"),
    (BEFORE, {"network": "other"}, "'student' use 3 of the 4 epochs of their shared schedule"),
    (BEFORE, AFTER | {"init": "scratch"}, "'student' use 3 of the 4 epochs"),
    (BEFORE, AFTER | {"optimizer": {"learning_rate": 0.1}}, "learning_rate is 0.1, and 0.05 in the previous stage"),
    ({"schedule": {"start_epoch": 1, "total_epochs": 2}}, AFTER, "start_epoch: 1, but the stages .* at epoch 0"),
    (BEFORE, AFTER | {"carry_over": "momentum"}, "unknown 'momentum'"),
    (BEFORE | {"carry_over": "optimizer"}, AFTER, "'optimizer', but the stage continues no other"),
    (BEFORE | {"ema_decay": 0.9}, ALL, "ema_decay is 0.9"),
    (BEFORE | {"optimizer": {"clip_norm": 1.0}}, ALL, "optimizer.clip_norm is 0.0, and 1.0 in the previous stage"),
    (BEFORE, ALL | {"optimizer": {"momentum": 0.5}}, "optimizer.momentum is 0.5, and 0.9 in the previous stage"),
    (BEFORE, ALL | {"task_weight": 0.5}, "task_weight is 0.5, and 1.0 in the previous stage; make them equal"),
    (BEFORE, ALL | {"reference": {"stage": "previous"}}, "but the stage has a reference"),
  ],
)  # fmt: skip
def test_schedules_and_states_that_do_not_match_are_refused(before, after, message):
  networks = runs.tiny().networks.to_dict() | {"other": runs.tiny().networks.student.to_dict()}
  first = stage("student", **{"teachers": ("teacher",), "methods": (METHOD,)} | before)
  second = stage(**{"network": "student", "teachers": ("teacher",)} | after)
  with pytest.raises(UserError, match=message):
    resolve(runs.tiny(networks=networks, stages=(stage("teacher"), first, second)))
