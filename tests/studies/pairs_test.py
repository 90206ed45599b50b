"""Tests of configs/studies/pairs.py: every pair has its teacher, weights and control."""

import functools
import json

import pytest

import runs
from smskd_jax import data, literature
from smskd_jax.analysis.study_records import compared
from smskd_jax.errors import UserError
from smskd_jax.studies import config as studies
from smskd_jax.studies import tree

SMALL = "dataset=digits,image_size=16,padding=1,batch_size=128,epochs=2,warmup_epochs=0.5,max_images=256"
CONFIG = "configs/studies/pairs.py"


@functools.cache
def load(arg=""):
  return studies.resolve(runs.module(CONFIG).get_config(arg))


def test_every_pair_of_the_literature_in_three_variants_of_equal_budgets():
  found = load("pairs=all")
  assert len(found["variants"]) == 3 * 13
  assert [stage["learner"] for stage in found["teachers"]["stages"]] == [
    "wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"
  ]  # fmt: skip
  for name, variant in found["variants"].items():
    teacher, student = name.partition(".")[0].split("-")
    models = {network: entry["model"] for network, entry in variant["networks"].items()}
    assert models == {teacher: teacher, "student": student}
    assert variant["networks"][teacher]["variables"] == studies.GIVEN
    assert sum(stage["epochs"] for stage in variant["stages"]) == 240
    reads = {network for stage in variant["stages"] for network in stage["teachers"]}
    assert reads == (set() if name.endswith(".nokd") else {teacher})
    rates = {stage["optimizer"]["learning_rate"] for stage in variant["stages"]}
    assert rates == {literature.learning_rate(student)}


def test_groups_and_repeated_pairs():
  names = lambda arg: list(dict.fromkeys(name.partition(".")[0] for name in load(arg)["variants"]))
  assert len(names("pairs=same")) == 7 and len(names("pairs=cross")) == 6
  assert names("pairs=vgg13-vgg8+same")[:2] == ["vgg13-vgg8", "wrn_40_2-wrn_16_2"]
  assert len(names("pairs=vgg13-vgg8+same")) == 7 and len(names("")) == 4


def test_every_pair_has_its_own_control_and_the_paper_s_numbers():
  found = load("pairs=resnet56-resnet20+vgg13-MobileNetV2+resnet14-resnet8,methods=crd+kd+fitnet")
  assert compared(found) == {
    f"{pair}.{name}": f"{pair}.last_alone"
    for pair in ("resnet56-resnet20", "vgg13-MobileNetV2", "resnet14-resnet8")
    for name in ("smskd", "nokd")
  }
  assert found["published"] == {
    "resnet56-resnet20.last_alone": 69.21,
    "resnet56-resnet20.nokd": 69.06,
    "vgg13-MobileNetV2.last_alone": 64.14,
    "vgg13-MobileNetV2.nokd": 64.60,
  }
  assert load("dataset=digits")["published"] == {}


def test_weights_are_those_of_the_pair():
  found = load("pairs=vgg13-vgg8+vgg13-MobileNetV2+resnet14-resnet8,methods=catkd+dkd")
  terms = {
    name.partition(".")[0]: [stage["methods"][0] for stage in variant["stages"]]
    for name, variant in found["variants"].items()
    if name.endswith(".smskd")
  }
  assert {name: (catkd["weight"], dkd["beta"]) for name, (catkd, dkd) in terms.items()} == {
    "vgg13-vgg8": (4.5, 6.0),
    "vgg13-MobileNetV2": (15.0, 6.0),
    "resnet14-resnet8": (15.0, 8.0),
  }


def test_stages_to_train(tmp_path):
  """A teacher of two pairs once, a student without a teacher once for both its pairs."""
  found = load(f"{SMALL},pairs=resnet14-resnet8+resnet20-resnet8+resnet14-wrn_10_1,seeds=0")
  nodes = tree.nodes(found, functools.cache(data.load), tmp_path, {})
  teachers, alone, staged, without = 2, 3, 3 * 2, 2
  assert len(nodes) == teachers + alone + staged + without
  (shared,) = {node.users for node in nodes.values() if len(node.users) > 1}
  assert shared == ("resnet14-resnet8.nokd", "resnet20-resnet8.nokd")


def test_teachers_of_one_model_are_not_taken_for_one_another(tmp_path):
  """Before they are trained they have names alone, however much alike."""
  found = load(f"{SMALL},pairs=resnet14-resnet8,seeds=0")
  variant = found["variants"]["resnet14-resnet8.last_alone"]
  names = ["teacher_of_ours_1", "teacher_of_ours_2"]
  networks = dict.fromkeys(names, variant["networks"]["resnet14"]) | {
    "student": variant["networks"]["student"]
  }
  keys = []
  for name in names:
    stages = tuple(stage | {"teachers": (name,)} for stage in variant["stages"])
    config = variant | {"networks": networks, "stages": stages}
    dataset = data.load(source="digits", folder="", validation=0.0, split_seed=0, image_size=16, unlabeled="")
    keys.append(tree.plans_of(config, dataset, {})[-1].key)
  assert keys[0] != keys[1]


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("pairs=", "config argument pairs: there are none"),
    ("pairs=resnet56", "'resnet56' is not TEACHER-STUDENT"),
    ("pairs=resnet56-resnt20", "config argument pairs: unknown 'resnt20'; did you mean 'resnet20'"),
    ("methods=kd", "methods: kd alone is no sequence"),
    ("methods=fitnet+kdd", "config argument methods: unknown 'kdd'"),
    ("teacher=resnet56", "unknown 'teacher'"),
    ("pairs=same,teacher_variables=a+b", "teacher_variables: 2 for the teachers wrn_40_2, resnet56"),
  ],
)
def test_refuses(arg, message):
  with pytest.raises(UserError, match=message):
    load(arg)


def test_teachers_may_be_given():
  found = load("pairs=vgg13-vgg8+resnet56-resnet20+vgg13-MobileNetV2,teacher_variables=a+b")
  assert not found["teachers"]
  given = {
    v["networks"]["vgg13"]["variables"] for v in found["variants"].values() if "vgg13" in v["networks"]
  }
  assert given == {"a"}


@pytest.mark.slow
def test_a_dry_run_from_the_command_line(tmp_path):
  out = runs.dry_study(tmp_path / "new", f"{CONFIG}:{SMALL},pairs=resnet14-resnet8,seeds=0")
  assert "5 stages to train once each" in out


@pytest.mark.slow
def test_runs_from_the_command_line(tmp_path):
  assert not runs.study(tmp_path, f"{CONFIG}:{SMALL},pairs=resnet14-resnet8+resnet8-resnet8,seeds=0")[
    "failures"
  ]
  report = (tmp_path / "report.md").read_text()
  for pair in ("resnet14-resnet8", "resnet8-resnet8"):
    assert f"{pair}.smskd against {pair}.last_alone" in report
  given = json.loads((tmp_path / "resnet8-resnet8.smskd" / "seed0" / "result.json").read_text())["given"]
  assert [one["network"] for one in given] == ["resnet8"]
