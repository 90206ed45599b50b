"""Tests of studies/config.py and of the configs of studies."""

import pytest

import runs
from smskd_jax.analysis.study_records import compared
from smskd_jax.config import experiment, network, stage
from smskd_jax.errors import UserError
from smskd_jax.studies import config as studies


def base(**fields):
  return experiment(networks={"student": network("resnet8")}, stages=(stage("student"),), **fields)


def load(name, arg=""):
  module = runs.module(f"configs/studies/{name}.py")
  return studies.resolve(module.get_config(arg) if name != "smoke" else module.get_config())


def test_changes_leave_the_base_alone():
  first = base()
  changes = {"stages[0].epochs": 7, "data.source": "digits", "stages[0].schedule": {"name": "step"}}
  second = studies.changed(first, changes)
  assert (second.stages[0].epochs, second.data.source) == (7, "digits")
  assert second.stages[0].schedule.to_dict() == {"name": "step"}
  assert (first.stages[0].epochs, first.data.source) == (1, "fashion_mnist_small")


@pytest.mark.parametrize(
  "path", ["stages[1].epochs", "stages[0].epoch", "stage", "stages.first", "stages[0]"]
)
def test_changes_of_fields_that_are_not_there_are_refused(path):
  with pytest.raises(UserError, match="the config has no field"):
    studies.changed(base(), {path: 1})


def test_the_answers_of_teachers_are_kept_where_no_method_reads_maps():
  variants = load("ablation", "teacher_cache=float16,views=9,methods=fitnet+rkd+kd")["variants"]
  of = lambda name: [one["teacher_cache"] for one in variants[name]["stages"]]
  assert of("smskd") == ["off", "float16", "float16"]
  assert (of("joint"), of("last_alone"), of("nokd")) == (["off"], ["float16"], ["off"])
  assert variants["smskd"]["stages"][1]["augment"]["crop_flip"]["views"] == 9


def test_variants_keep_their_order_and_may_have_dots():
  names = ["weight_0.5", "b", "a"]
  resolved = studies.resolve(studies.study(variants={name: base() for name in names}))
  assert list(resolved["variants"]) == names and resolved["control"] == "weight_0.5"


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"variants": {}}, "study.variants: there are none"),
    ({"seeds": ()}, "study.seeds: there are none"),
    ({"seeds": (1, 1)}, "names a seed twice"),
    ({"seeds": ("1",)}, "study.seeds: '1' is not of type int"),
    ({"control": "alon"}, "study.control: unknown 'alon'; did you mean 'alone'"),
    ({"controls": {"alon": "alone"}}, "study.controls: unknown 'alon'; did you mean 'alone'"),
    ({"controls": {"alone": "alon"}}, "study.controls: unknown 'alon'; did you mean 'alone'"),
    ({"published": {"x": 1.0}}, "study.published: unknown 'x'"),
    ({"network": "teacher"}, "study.variants.alone: study.network: unknown 'teacher'"),
    ({"variants": {"a/b": base()}}, "'a/b' is not a name of letters"),
    ({"variants": {"alone": base(seed=-1)}}, "study.variants.alone: config.seed: -1 is too small"),
    ({"sedes": (1,)}, "study: unknown 'sedes'; did you mean 'seeds'"),
  ],
)
def test_a_mistake_names_the_variant_and_the_field(fields, message):
  with pytest.raises(UserError, match=message):
    studies.resolve(studies.study(**{"variants": {"alone": base()}} | fields))


def test_networks_of_the_teachers_are_given_to_the_variants():
  teachers = experiment(networks={"teacher": network("resnet8")}, stages=(stage("teacher"),))
  taught = experiment(
    networks={"teacher": network("resnet8"), "student": network("resnet8")},
    stages=(stage("student", teachers=("teacher",)),),
  )
  resolved = studies.resolve(studies.study(variants={"kd": taught}, teachers=teachers))
  of_run = studies.of_seed(resolved["variants"]["kd"], 5, "/here")
  assert of_run["seed"] == 5
  assert {name: entry["variables"] for name, entry in of_run["networks"].items()} == {
    "teacher": "/here",
    "student": "",
  }


def test_a_variant_may_have_a_control_of_its_own():
  variants = {name: base() for name in ("a", "b", "c", "d")}
  assert compared(studies.resolve(studies.study(variants=variants))) == {"b": "a", "c": "a", "d": "a"}
  resolved = studies.resolve(studies.study(variants=variants, controls={"c": "c", "d": "c"}))
  assert compared(resolved) == {"b": "a", "d": "c"}


def test_networks_learn_at_their_published_rates():
  resolved = load("ablation", "teacher=vgg13,student=MobileNetV2")
  assert resolved["teachers"]["stages"][0]["optimizer"]["learning_rate"] == 0.05
  assert resolved["variants"]["nokd"]["stages"][0]["optimizer"]["learning_rate"] == 0.01
  given = load("ablation", "student=MobileNetV2,learning_rate=0.2")["variants"]["nokd"]["stages"]
  assert given[0]["optimizer"]["learning_rate"] == 0.2


@pytest.mark.parametrize("name", ["ablation", "stages", "orders", "combinations", "reference", "weighting"])
def test_every_config_is_a_study_of_equal_budgets(name):
  resolved = load(name, "dataset=digits,epochs=12")
  assert resolved["control"] in resolved["variants"] and resolved["seeds"] == (0, 1, 2)
  for variant in resolved["variants"].values():
    assert sum(stage["epochs"] for stage in variant["stages"]) == 12
    for stage_ in variant["stages"]:
      assert stage_["schedule"] == {"name": "cosine", "warmup_epochs": 1.0}


def test_the_ablation_takes_away_one_thing_at_a_time():
  variants = load("ablation")["variants"]
  smskd = variants["smskd"]["stages"]
  assert [s["reference"]["stage"] for s in smskd] == ["none", "previous", "previous"]
  weighted = {name: v["stages"][2]["reference"] for name, v in variants.items() if len(v["stages"]) == 3}
  assert weighted["no_reference"]["stage"] == "none"
  for name in ("constant", "shuffled", "tcp"):
    assert weighted[name]["weighting"] == name and weighted[name]["stage"] == "previous"
  assert weighted["mean_of_tcp"]["normalize"] and not weighted["smskd"]["normalize"]
  assert [s["start"] for s in variants["restart"]["stages"]] == ["previous", "fresh", "fresh"]
  (joint,), (alternating,), (nokd,) = (variants[name]["stages"] for name in ("joint", "alternating", "nokd"))
  assert len(joint["methods"]) == len(alternating["methods"]) == 3
  assert (joint["alternate_epochs"], alternating["alternate_epochs"]) == (0, 1)
  assert (nokd["methods"], nokd["teachers"], nokd["task_weight"]) == ((), (), 1.0)


@pytest.mark.parametrize(
  ("name", "arg", "message"),
  [
    ("ablation", "seeds=0+x", r"seeds: '0\+x' are not whole numbers"),
    ("ablation", "methods=", "methods: there are none"),
    ("ablation", "methods=fitnet+kdd", "config argument methods: unknown 'kdd'; did you mean 'kd'"),
    ("ablation", "epochs=2", "epochs: 2 cannot be shared by 3 stages"),
    ("stages", "budget=half", "budget: unknown 'half'"),
    ("reference", "temperatures=1+y", "temperatures"),
  ],
)
def test_configs_refuse(name, arg, message):
  with pytest.raises(UserError, match=message):
    load(name, arg)
