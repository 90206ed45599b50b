"""Tests of configs/cifar.py: what a line of arguments becomes."""

import importlib.util

import pytest
import runs

from smskd_jax.config import resolve
from smskd_jax.errors import UserError


def get_config(arg=None):
  spec = importlib.util.spec_from_file_location("cifar", runs.ROOT / "configs" / "cifar.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return resolve(module.get_config(arg))


def student_epochs(config):
  return [s["epochs"] for s in config["stages"] if s["learner"] == "student"]


def test_the_recipe_of_crd():
  config = get_config("teacher=resnet56,student=resnet20,stages=fitnet+kd")
  teacher, fitnet, kd = config["stages"]
  assert teacher["epochs"] == 240 and teacher["batch_size"] == 64
  assert teacher["optimizer"] == {
    "name": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
  }
  assert teacher["schedule"]["milestones"] == (150 / 240, 180 / 240, 210 / 240)
  assert teacher["augment"] == {"padding": 4, "flip": True}
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
