"""Tests of engine/evaluator.py: forgetting of every stage against every earlier one."""

import numpy as np
import pytest

import runs
from smskd_jax import data
from smskd_jax.config import method, network, resolve, stage
from smskd_jax.engine.evaluator import Evaluator
from smskd_jax.engine.plan import make_plans
from smskd_jax.runtime import eval_outputs, parallel
from smskd_jax.runtime.store import StageEntry
from tiny import SMALL


@pytest.fixture(scope="module")
def lineage():
  """A data set, and the plans of a teacher, an assistant, three stages of a student, and one that begins anew."""
  taught = {"network": "student", "teachers": ("assistant",), "methods": (method("kd"),), "batch_size": 128}
  config = runs.tiny(
    data={"source": "digits", "validation": 0.2},
    networks={name: network(SMALL, width=0.125) for name in ("teacher", "assistant", "student")},
    stages=(
      stage("teacher", batch_size=128),
      stage("assistant", name="assistant", teachers=("teacher",), methods=(method("kd"),), batch_size=128),
      stage(name="one", **taught),
      stage(name="two", reference={"stage": "previous"}, **taught),
      stage(name="three", reference={"stage": "one"}, **taught),
      stage(name="anew", init="scratch", **taught),
    ),
  )
  config = resolve(config)
  dataset = data.load("digits", validation=0.2)
  return config, dataset, make_plans(config, dataset)


def said(dataset, seed):
  """Logits of all held-out sets, with ties, which are right for about half of the images."""
  random = np.random.default_rng(seed)
  sets = {"test": dataset.test.label, "validation": dataset.validation.label}

  def logits(label):
    return random.integers(0, 3, (len(label), 10)) + 2 * np.eye(10)[label]

  return {f"{name}/logits": logits(label).astype(np.float32) for name, label in sets.items()}


def test_every_stage_is_held_against_every_earlier_one_of_its_network(lineage, tmp_path):
  config, dataset, plans = lineage
  kept = {plan.name: said(dataset, seed) for seed, plan in enumerate(plans)}
  for plan in plans:
    eval_outputs.write(StageEntry(tmp_path, plan.key).eval_outputs, kept[plan.name])
  held_out = Evaluator(dataset, parallel.select_devices([128], 1), config["evaluate"], tmp_path)
  found = {plan.name: held_out._forgetting(plan, kept[plan.name]) for plan in plans}
  keys = {plan.key: plan.name for plan in plans}
  pairs = {name: [keys[one["key"]] for one in of["test"]] for name, of in found.items()}
  alone = {"teacher": [], "assistant": [], "one": [], "anew": []}
  assert pairs == {**alone, "two": ["one"], "three": ["one", "two"]}
  for split, label in (("test", dataset.test.label), ("validation", dataset.validation.label)):
    right = {
      name: set(np.flatnonzero(np.argmax(of[f"{split}/logits"], -1) == label)) for name, of in kept.items()
    }
    for name in ("two", "three"):
      for record in found[name][split]:
        before, now = right[keys[record["key"]]], right[name]
        assert record["kept"] == len(before & now) > 0
        assert record["forgotten"] == len(before - now) > 0
        assert record["gained"] == len(now - before) > 0
        assert record["iou"] == len(before & now) / len(before | now)
