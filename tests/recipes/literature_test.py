"""Tests of recipes/literature.py and its tables."""

import csv

import numpy as np
import pytest

from smskd_jax.errors import UserError
from smskd_jax.losses import METHODS, sakd
from smskd_jax.models import NETWORKS
from smskd_jax.recipes import literature


def rows():
  with literature.RECIPES_PATH.open(newline="") as file:
    return list(csv.DictReader(file))


def test_every_method_single_view_methods_has_a_row_and_every_row_a_source():
  plugin_methods = {"ctkd": "kd", "dkd_ls": "dkd", "kd_ls": "kd", "rld_ls": "rld"}
  plugin_methods |= {f"{name}_nd": name for name in ("kd", "dkd", "dist", "reviewkd")}
  plugin_methods |= {f"sakd_{name}": name for name in sakd.WRAPPED}
  single_view_methods = {name for name, make in METHODS.items() if make().min_views == 1}
  assert {plugin_methods.get(name, name) for name in literature.recipe_names()} == single_view_methods
  assert all(row["source"] and None not in row for row in rows())
  pairs = [(row["recipe"], row["teacher"], row["student"]) for row in rows()]
  assert len(set(pairs)) == len(pairs)
  assert all((name, "", "") in pairs for name in literature.recipe_names())


@pytest.mark.parametrize("row", rows(), ids=lambda row: "-".join(filter(None, list(row.values())[:3])))
def test_every_row_is_a_valid_method(row):
  found = literature.published_recipe(row["recipe"], row["teacher"], row["student"])
  assert found.term.weight == float(row["weight"]) and found.source == row["source"]


def test_plug_ins_have_their_published_weights():
  term = literature.published_recipe("kd_nd", "resnet32x4", "ShuffleV1").term
  (nd,) = term.plugins
  assert term.name == "kd" and nd.warmup_epochs == 20.0 and term.warmup_epochs == 0.0
  np.testing.assert_allclose((term.weight, term.weight * nd.weight), (2.5, 1.5))
  assert literature.published_recipe("dkd_nd", "resnet56", "resnet20").term.plugins[0].weight == 3.5


def test_rows_name_existing_networks():
  """A misspelt row would never be found, and the row for all pairs used in its place."""
  own = {name for row in rows() for name in (row["teacher"], row["student"]) if name}
  assert own | {name for pair in literature.published_accuracies() for name in pair} <= set(NETWORKS)
  assert literature.published_recipe("dkd", "vgg13", "MobileNetV2").term.beta == 6.0


def test_accuracies_are_those_of_the_paper_s_tables():
  found = literature.published_accuracies()
  assert len(found) == 13 and all(
    set(row) - {"nokd"} <= set(literature.recipe_names()) for row in found.values()
  )
  assert found["resnet56", "resnet20"]["nokd"] == 69.06 and found["resnet56", "resnet20"]["kd"] == 70.66
  assert found["wrn_40_2", "ShuffleV1"]["crd"] == 76.05 and found["vgg13", "MobileNetV2"]["nst"] == 58.16


def test_mobile_networks_have_a_lower_learning_rate():
  assert [literature.learning_rate(name) for name in ("resnet20", "MobileNetV2", "ShuffleV2")] == [
    0.05,
    0.01,
    0.01,
  ]


def test_a_pair_without_a_row_has_the_row_of_all_pairs():
  assert literature.published_recipe("kd", "mine", "yours") == literature.published_recipe("kd")


def test_the_policy_of_spot_adaptive_distillation_starts_on_for_networks_of_one_family():
  def bias(teacher, student):
    (plugin,) = literature.published_recipe("sakd_rkd", teacher, student).term.plugins
    assert (plugin.name, plugin.method_weight, plugin.gamma) == ("sakd", 1.0, 2.0)
    return plugin.get("initial_bias", 0.0)

  for pair in (
    ("resnet56", "resnet20"),
    ("resnet32x4", "resnet8x4"),
    ("wrn_40_2", "wrn_16_2"),
    ("vgg13", "vgg8"),
  ):
    assert bias(*pair) == 10.0
  for pair in (("resnet32x4", "ShuffleV2"), ("ResNet50", "resnet8"), ("vgg13", "MobileNetV2"), ("", "")):
    assert bias(*pair) == 0.0


def test_unknown_names_are_refused():
  with pytest.raises(UserError, match="argument stages: unknown 'fitnt'; did you mean 'fitnet'"):
    literature.published_recipe("fitnt", field="argument stages")
