"""Tests of the studies of the SMSKD paper: variants, shared stages, published numbers and claims."""

import pytest

import runs
from smskd_jax import data
from smskd_jax.config import study_schema
from smskd_jax.errors import UserError
from smskd_jax.recipes import smskd_tables
from smskd_jax.studies import stage_graph

# Small enough to be planned in seconds; the paper's schedule at a tenth of its epochs.
SMALL = "dataset=digits,epochs=24,pair=resnet14-resnet8,seeds=0"


def load(name, arg=""):
  return study_schema.resolve(runs.module(f"configs/studies/{name}.py").get_config(arg))


def stages(variant):
  return [
    (stage["methods"][0]["name"], stage["epochs"], stage["schedule"]["start_epoch"], stage["carry_over"])
    for stage in variant["stages"]
  ]


def test_table_1_has_single_joint_and_sequential_variants_with_published_numbers():
  study = load("table1", "methods=at+rkd")
  names = [
    "student",
    "kd",
    *(f"{m}.{end}" for m in ("at", "rkd") for end in ("alone", "dla", "sakd", "smskd")),
  ]
  assert list(study["variants"]) == names and study["seeds"] == (0, 1, 2)
  variants = study["variants"]
  assert stages(variants["at.alone"]) == [("at", 150, 0, "variables"), ("at", 90, 150, "all")]
  assert stages(variants["at.smskd"]) == [("at", 150, 0, "variables"), ("kd", 90, 150, "variables")]
  assert variants["at.smskd"]["stages"][1]["reference"]["weight"] == 0.5
  (dla,) = variants["at.dla"]["stages"]
  assert [m["name"] for m in dla["methods"]] == ["at", "kd"] and dla["epochs"] == 240
  (labels,) = variants["student"]["stages"]
  assert (labels["methods"], labels["teachers"], labels["task_weight"]) == ((), (), 1.0)
  (sakd,) = variants["at.sakd"]["stages"]
  (at,) = sakd["methods"]
  (plugin,) = at["plugins"]
  assert (at["name"], at["weight"], sakd["task_weight"], sakd["epochs"]) == ("at", 1.0, 1.0, 240)
  assert (plugin["method_weight"], plugin["gamma"], plugin["initial_bias"]) == (1000.0, 2.0, 10.0)
  published = study["published"]
  assert (published["at.smskd"], published["at.sakd"], published["rkd.sakd"]) == (72.16, 71.5, 71.29)
  claims = {(c["variant"], c["control"]): c["paper"] for c in study["claims"]}
  assert claims["at.smskd", "at.alone"] == "+1.80" and claims["rkd.smskd", "rkd.dla"] == "-0.68"
  assert claims["at.smskd", "at.sakd"] == "+0.66"
  assert [stage["network"] for stage in study["teachers"]["stages"]] == ["teacher"]


@pytest.mark.parametrize("pair", ["resnet56-resnet20", "vgg13-vgg8"])
def test_table_2_has_its_own_numbers_and_no_crops(pair):
  study = load("table2", f"pair={pair}")
  column = smskd_tables.TABLE_2[pair]
  assert study["published"]["student"] == column.student
  assert study["published"]["pkt.smskd"] == column.rows["pkt"][3]
  variant = study["variants"]["kd"]
  assert variant["data"]["source"] == "tiny_imagenet"
  assert all(stage["augment"]["crop_flip"]["padding"] == 0 for stage in variant["stages"])


def test_table_3_adds_one_thing_at_a_time():
  more = "alone+stages+constant+tcp+student+dla+one_minus_teacher_tcp+temperature_4"
  study = load("table3", f"methods=at,variants={more}")
  variants = study["variants"]
  assert list(variants) == ["kd", "student", *(f"at.{name}" for name in more.split("+") if name != "student")]
  assert len(variants["at.dla"]["stages"][0]["methods"]) == 2
  at = {
    name.removeprefix("at."): variant["stages"][1]["reference"]
    for name, variant in variants.items()
    if len(variant["stages"]) > 1
  }
  assert at["stages"]["stage"] == "none"
  assert (at["constant"]["stage"], at["constant"]["weighting"]) == ("previous", "constant")
  assert at["tcp"]["weighting"] == "reference_tcp"
  assert at["one_minus_teacher_tcp"]["weighting"] == "one_minus_teacher_tcp"
  assert (at["temperature_4"]["temperature"], at["temperature_4"]["tcp_temperature"]) == (4.0, 4.0)
  study = load("table3", "methods=pkt")
  assert [claim["paper"] for claim in study["claims"]] == ["+0.70", "+0.16", "-0.57", "+0.29", "-0.25"]


def test_figure_2_has_the_combinations_of_the_paper():
  study = load("figure2")
  assert {"fitnet+crd", "crd+vid", "dkd+kd", "at+dkd"} <= set(study["variants"])
  claims = {(c["variant"], c["control"]): c["paper"] for c in study["claims"]}
  assert claims["fitnet+crd", "fitnet"] == "+2.50" and claims["crd+vid", "crd"] == "-"


def planned(name, arg=SMALL):
  study, folder = load(name, arg), runs.ROOT / "no_such_store"
  return study, stage_graph.build_graph(study, data.load, folder, {})


def test_figure_4_trains_its_first_method_once_for_all_transitions():
  study, nodes = planned("figure4", f"{SMALL},lambdas=0+0.5,transitions=120+150")
  first = [
    node for node in nodes.values() if node.plan.config["methods"][:1] and node.plan.name.startswith("at")
  ]
  assert [node.plan.config["epochs"] for node in first] == [12, 3, 9]
  assert list(study["variants"])[2:] == ["120_lambda_0", "120_lambda_0.5", "150_lambda_0", "150_lambda_0.5"]
  assert len(nodes) == 1 + 3 + 2 + 4, (
    "a teacher, AT in three pieces, KD in two, and a last stage for each cell"
  )
  last = study["variants"]["150_lambda_0"]["stages"][-1]
  assert last["reference"]["stage"] == "none" and (last["schedule"]["start_epoch"], last["epochs"]) == (15, 9)


def test_figure_5_shares_all_beginnings():
  study, nodes = planned("figure5", f"{SMALL},methods=at+kd+pkt")
  assert list(study["variants"]) == ["1_stage", "2_stages", "3_stages"]
  assert len(nodes) == 1 + 4, "a teacher, AT, its continuation, KD and PKT"
  assert [claim["paper"] for claim in study["claims"]] == ["+", ""]


def test_there_are_studies_of_all_orders_and_of_all_weightings():
  assert len(load("orders")["variants"]) == 6
  variants = load("weighting", "normalize=True")["variants"]
  assert variants["reference_tcp"]["stages"][1]["reference"]["normalize"]
  assert not variants["constant"]["stages"][1]["reference"]["normalize"]


@pytest.mark.parametrize("methods", ["at+crd", "kd"])
def test_teacher_outputs_are_cached_where_no_method_reads_maps(methods):
  variants = load("table1", f"methods={methods},teacher_cache=float16,num_views=9")["variants"]
  cached = {name: [stage["teacher_cache"] for stage in v["stages"]] for name, v in variants.items()}
  assert cached["student"] == ["off"] and cached["kd"] == ["float16", "float16"]
  if methods != "kd":
    assert cached["at.smskd"] == ["off", "float16"] and cached["at.dla"] == ["off"]
    assert cached["crd.smskd"] == ["float16", "float16"]


@pytest.mark.parametrize(
  ("name", "arg", "message"),
  [
    ("table1", "seeds=0+x", r"seeds: '0\+x' are not whole numbers"),
    ("table1", "pair=resnet56", "pair: 'resnet56' is not TEACHER-STUDENT"),
    ("table1", "pair=resnet56-resnet21", "unknown 'resnet21'"),
    ("table1", "methods=", "methods: there are none"),
    ("table1", "methods=at+kdd", "config argument methods: unknown 'kdd'; did you mean 'kd'"),
    ("table1", "second=kd+at", "second: 'kd.at' must be one method"),
    ("table3", "transition=240", "transition: 240 is not inside the 240 epochs"),
    ("figure2", "combinations=kd/at+kd", "combinations: 'kd' is one method; join two"),
    ("figure4", "transition=100", "this study has a grid of them"),
    ("figure4", "transitions=150+120", "must ascend"),
    ("figure4", "lambdas=1+y", "lambdas: '1.y' are not numbers"),
    ("orders", "epochs=2", "epochs: 2 cannot be shared by 3 stages"),
  ],
)
def test_a_mistake_in_the_arguments_is_refused(name, arg, message):
  with pytest.raises(UserError, match=message):
    load(name, arg)
