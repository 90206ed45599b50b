"""Tests of differences between configs in analysis/comparison.py; compare_test.py tests whole comparisons."""

from smskd_jax.analysis.comparison import ABSENT, config_differences


def test_every_field_is_found():
  one = {"seed": 0, "optimizer": {"name": "sgd", "momentum": 0.9}, "same": [1, 2]}
  other = {"seed": 1, "optimizer": {"name": "adam", "b1": 0.9}, "same": [1, 2]}
  assert config_differences("", one, other) == [
    ("seed", 0, 1),
    ("optimizer.name", "sgd", "adam"),
    ("optimizer.momentum", 0.9, ABSENT),
    ("optimizer.b1", ABSENT, 0.9),
  ]


def test_lists_are_compared_item_by_item():
  assert config_differences("seeds", [0, 1], [0, 2, 3]) == [("seeds[1]", 1, 2), ("seeds[2]", ABSENT, 3)]
  assert config_differences("x", [], ["a"]) == [("x[0]", ABSENT, "a")]
  assert config_differences("x", [1], 1) == [("x", [1], 1)]


def test_items_with_names_are_paired_by_them():
  kd, rkd = {"name": "kd", "epochs": 2}, {"name": "rkd", "epochs": 1}
  assert config_differences(
    "stages", [kd, rkd], [{"name": "first", "epochs": 1}, kd | {"epochs": 5}, rkd]
  ) == [
    ("stages.kd.epochs", 2, 5),
    ("stages.first", ABSENT, {"name": "first", "epochs": 1}),
  ]
  assert config_differences("stages", [kd, rkd], [rkd, kd]) == [
    ("stages (order)", ["kd", "rkd"], ["rkd", "kd"])
  ]


def test_items_of_the_same_name_are_paired_by_their_place():
  kd = {"name": "kd", "weight": 1.0}
  assert config_differences("methods", [kd, kd], [kd, kd | {"weight": 2.0}]) == [
    ("methods[1].weight", 1.0, 2.0)
  ]


def test_equal_configs_have_no_differences():
  config = {"stages": [{"name": "kd", "methods": []}], "seed": 0}
  assert config_differences("", config, config) == []
