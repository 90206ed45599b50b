"""Tests of configs/cifar.py: what a line of arguments becomes."""

import importlib.util

import pytest

import runs
from smskd_jax import literature
from smskd_jax.config import resolve
from smskd_jax.errors import UserError


def load():
  spec = importlib.util.spec_from_file_location("cifar", runs.ROOT / "configs" / "cifar.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(arg=None):
  return resolve(load().get_config(arg))


def student_epochs(config):
  return [s["epochs"] for s in config["stages"] if s["learner"] == "student"]


def test_the_recipe_of_crd():
  config = get_config("teacher=resnet56,student=resnet20,stages=fitnet+kd")
  teacher, fitnet, kd = config["stages"]
  assert teacher["epochs"] == 240 and teacher["batch_size"] == 64
  assert teacher["optimizer"] == {
    "name": "sgd",
    "learning_rate": 0.05,
    "learning_rate_of": 0,
    "clip_norm": 0.0,
    "accumulate_steps": 1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
  }
  assert teacher["schedule"]["milestones"] == (150 / 240, 180 / 240, 210 / 240)
  assert teacher["augment"] == {"crop_flip": {"padding": 4, "flip": True, "views": 0}}
  assert (fitnet["methods"][0]["weight"], fitnet["task_weight"]) == (100.0, 1.0)
  assert (kd["methods"][0]["weight"], kd["methods"][0]["temperature"], kd["task_weight"]) == (0.9, 4.0, 0.1)
  assert fitnet["reference"]["stage"] == "none" and kd["reference"]["stage"] == "previous"


@pytest.mark.parametrize(
  ("arg", "epochs"),
  [
    ("stages=fitnet+rkd+kd,epochs=240", [80, 80, 80]),
    ("stages=fitnet+rkd+kd,epochs=8", [3, 3, 2]),
    ("stages=fitnet+rkd+kd,epochs=8,budget=full", [8, 8, 8]),
    ("stages=fitnet+rkd+kd,epochs=8,mode=joint", [8]),
    ("stages=kd,epochs=8", [8]),
  ],
)
def test_budgets(arg, epochs):
  assert student_epochs(get_config(arg)) == epochs


def test_joint_is_one_stage_of_all_methods_without_a_reference():
  _, joint = get_config("stages=fitnet+kd,mode=joint")["stages"]
  assert [m["name"] for m in joint["methods"]] == ["fitnet", "kd"]
  assert joint["reference"]["stage"] == "none"


@pytest.mark.parametrize("name", literature.names())
def test_every_recipe_is_a_config(name):
  _, student = get_config(f"stages={name}")["stages"]
  published = literature.recipe(name, "resnet56", "resnet20")
  assert student["methods"][0]["weight"] == published.term.weight
  assert student["task_weight"] == published.task_weight


def test_a_pair_has_its_own_weight():
  (term,) = get_config("teacher=resnet110,student=resnet20,stages=kd_ls")["stages"][1]["methods"]
  assert (term["name"], term["weight"], term["temperature"]) == ("kd", 12.0, 4.0)
  assert [p["name"] for p in term["plugins"]] == ["logit_standardization"]
  (term,) = get_config("teacher=resnet32x4,student=resnet8x4,stages=dkd")["stages"][1]["methods"]
  assert (term["beta"], term["warmup_epochs"]) == (8.0, 20.0)


def test_dot_trains_the_student_alone():
  teacher, student = get_config("stages=kd,optimizer=dot")["stages"]
  assert (teacher["optimizer"]["name"], student["optimizer"]["name"]) == ("sgd", "dot")


@pytest.mark.parametrize(
  ("stages", "model"), [("simkd", "simkd"), ("dml", "cohort"), ("dml+kd", "cohort"), ("simkd+kd", "resnet20")]
)
def test_students_made_of_the_student(stages, model):
  assert get_config(f"stages={stages}")["networks"]["student"]["model"] == model


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("stages=fitnet+kdd", "config argument stages: unknown 'kdd'; did you mean 'kd'"),
    ("mode=jont", "config argument mode: unknown 'jont'; did you mean 'joint'"),
    ("budget=ful", "config argument budget: unknown 'ful'; did you mean 'full'"),
    ("stages=fitnet+kd,epochs=1", "1 cannot be shared by 2 stages"),
    ("studnt=resnet8", "unknown 'studnt'; did you mean 'student'"),
  ],
)
def test_mistakes(arg, message):
  with pytest.raises(UserError, match=message):
    get_config(arg)


@pytest.mark.parametrize("student, rate", [("resnet20", 0.05), ("MobileNetV2", 0.01), ("ShuffleV1", 0.01)])
def test_the_rate_is_that_of_the_network(student, rate):
  teacher, of_student = get_config(f"teacher=resnet32x4,student={student},stages=kd")["stages"]
  assert teacher["optimizer"]["learning_rate"] == 0.05 and of_student["optimizer"]["learning_rate"] == rate
  (given, _) = get_config(f"student={student},stages=kd,learning_rate=0.2")["stages"]
  assert given["optimizer"]["learning_rate"] == 0.2


def test_a_teacher_from_a_folder_is_not_trained():
  config = get_config("teacher=resnet32x4,teacher_variables=teachers/one,student=resnet8x4,stages=fitnet+kd")
  assert config["networks"]["teacher"]["variables"] == "teachers/one"
  assert [stage["learner"] for stage in config["stages"]] == ["student", "student"]
