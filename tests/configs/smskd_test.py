"""Tests of configs/smskd.py: the published protocol and recipe, and the stages of its arguments."""

import numpy as np
import pytest

import runs
from smskd_jax.config import resolve
from smskd_jax.errors import UserError
from smskd_jax.recipes import literature
from smskd_jax.training import schedule


def get_config(arg=None):
  return resolve(runs.module("configs/smskd.py").get_config(arg))


def student_stages(config):
  return [s for s in config["stages"] if s["network"] == "student"]


def rates(entry):
  """Learning rate of a stage in each epoch."""
  rate = schedule.make(
    peak=entry["optimizer"]["learning_rate"], steps_per_epoch=1, epochs=entry["epochs"], **entry["schedule"]
  )
  return [float(rate(epoch)) for epoch in range(entry["epochs"])]


def test_the_recipe_is_that_of_crd():
  config = get_config("teacher=resnet56,student=resnet20,stages=fitnet+kd")
  teacher, fitnet, kd = config["stages"]
  assert teacher["epochs"] == 240 and teacher["batch_size"] == 64
  assert teacher["optimizer"] == {
    "name": "sgd",
    "learning_rate": 0.05,
    "base_batch_size": 0,
    "clip_norm": 0.0,
    "accumulate_steps": 1,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
  }
  assert teacher["schedule"]["milestones"] == (150 / 240, 180 / 240, 210 / 240)
  assert teacher["augment"] == {"crop_flip": {"padding": 4, "flip": True, "num_views": 0}}
  assert (fitnet["methods"][0]["weight"], fitnet["task_weight"]) == (100.0, 1.0)
  assert (kd["methods"][0]["weight"], kd["methods"][0]["temperature"], kd["task_weight"]) == (0.9, 4.0, 0.1)
  assert fitnet["reference"]["stage"] == "none"
  assert kd["reference"] == {
    "stage": "previous",
    "weight": 0.5,
    "divergence": "student_to_reference",
    "temperature": 1.0,
    "scale_by_temperature_squared": False,
    "weighting": "reference_tcp",
    "tcp_temperature": 1.0,
    "normalize": False,
  }


@pytest.mark.parametrize("epochs", [240, 24, 8])
def test_two_stages_are_one_schedule(epochs):
  first, second = student_stages(get_config(f"stages=at+kd,epochs={epochs}"))
  (whole,) = student_stages(get_config(f"stages=kd,epochs={epochs}"))
  scale = epochs / 240
  at = [round(epoch * scale) for epoch in (150, 180, 210)]
  assert first["epochs"] == at[0] and second["epochs"] == epochs - at[0]
  expected = [0.05 * 0.1 ** sum(epoch >= drop for drop in at) for epoch in range(epochs)]
  np.testing.assert_allclose(rates(first) + rates(second), expected, rtol=1e-5)
  np.testing.assert_allclose(rates(whole), expected, rtol=1e-5)
  assert second["carry_over"] == "variables"


def test_further_stages_restart_at_a_tenth_of_the_learning_rate():
  stages = student_stages(get_config("stages=at+kd+crd+vid+pkt"))
  assert [stage["epochs"] for stage in stages] == [150, 90, 90, 90, 90]
  for stage in stages[2:]:
    np.testing.assert_allclose(rates(stage), [5e-3] * 30 + [5e-4] * 30 + [5e-5] * 30, rtol=1e-5)
    assert stage["reference"]["stage"] == "previous"


def test_another_transition_does_not_move_the_drops():
  first, second = student_stages(get_config("stages=at+kd,transition=120,carry_over=optimizer"))
  assert (first["epochs"], second["epochs"], second["carry_over"]) == (120, 120, "optimizer")
  np.testing.assert_allclose(rates(second)[:31], [0.05] * 30 + [0.005], rtol=1e-5)


def test_tiny_imagenet_is_flipped_but_not_cropped():
  assert student_stages(get_config("dataset=tiny_imagenet"))[0]["augment"]["crop_flip"]["padding"] == 0
  assert (
    student_stages(get_config("dataset=tiny_imagenet,padding=8"))[0]["augment"]["crop_flip"]["padding"] == 8
  )


def test_warmups_scale_with_the_epochs():
  warmups = [
    student_stages(get_config(f"stages=dkd,epochs={n}"))[0]["methods"][0]["warmup_epochs"] for n in (240, 24)
  ]
  assert warmups == [20.0, 2.0]


@pytest.mark.parametrize(
  ("arg", "epochs"),
  [
    ("stages=fitnet+rkd+kd,epochs=240,protocol=equal", [80, 80, 80]),
    ("stages=fitnet+rkd+kd,epochs=8,protocol=equal", [3, 3, 2]),
    ("stages=fitnet+rkd+kd,epochs=8,protocol=full", [8, 8, 8]),
    ("stages=fitnet+rkd+kd,epochs=8", [5, 3, 3]),
    ("stages=fitnet+rkd+kd,epochs=8,mode=joint", [8]),
    ("stages=kd,epochs=8", [8]),
  ],
)
def test_protocols_divide_the_epochs(arg, epochs):
  assert [stage["epochs"] for stage in student_stages(get_config(arg))] == epochs


def test_joint_is_one_stage_of_all_methods_without_a_reference():
  _, joint = get_config("stages=fitnet+kd,mode=joint")["stages"]
  assert [m["name"] for m in joint["methods"]] == ["fitnet", "kd"]
  assert joint["reference"]["stage"] == "none"


@pytest.mark.parametrize("name", literature.recipe_names())
def test_every_published_recipe_is_a_stage(name):
  _, student = get_config(f"stages={name}")["stages"]
  published = literature.published_recipe(name, "resnet56", "resnet20")
  assert student["methods"][0]["weight"] == published.term.weight
  assert student["task_weight"] == published.task_weight


def test_a_pair_can_have_its_own_weights():
  (term,) = get_config("teacher=resnet110,student=resnet20,stages=kd_ls")["stages"][1]["methods"]
  assert (term["name"], term["weight"], term["temperature"]) == ("kd", 12.0, 4.0)
  assert [p["name"] for p in term["plugins"]] == ["logit_standardization"]
  (term,) = get_config("teacher=resnet32x4,student=resnet8x4,stages=dkd")["stages"][1]["methods"]
  assert (term["beta"], term["warmup_epochs"]) == (8.0, 20.0)


def test_dot_trains_only_the_student():
  teacher, student = get_config("stages=kd,optimizer=dot")["stages"]
  assert (teacher["optimizer"]["name"], student["optimizer"]["name"]) == ("sgd", "dot")


@pytest.mark.parametrize(
  ("stages", "model"), [("simkd", "simkd"), ("dml", "cohort"), ("dml+kd", "cohort"), ("simkd+kd", "resnet20")]
)
def test_simkd_and_dml_wrap_the_student(stages, model):
  assert get_config(f"stages={stages}")["networks"]["student"]["model"] == model


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("stages=fitnet+kdd", "config argument stages: unknown 'kdd'; did you mean 'kd'"),
    ("mode=jont", "config argument mode: unknown 'jont'; did you mean 'joint'"),
    ("protocol=ful", "config argument protocol: unknown 'ful'; did you mean 'full'"),
    ("protocol=equal,stages=fitnet+kd,epochs=1", "1 cannot be shared by 2 stages"),
    ("stages=fitnet+kd,epochs=1", "transition: 1 is not inside the 1 epochs"),
    ("transition=240", "transition: 240 is not inside the 240 epochs; choose one from 1 to 239"),
    ("transition=-3", "transition: -3 is not inside the 240 epochs"),
    ("transition=9,protocol=full", "transition: 9, but protocol 'full' has none"),
    ("stages=at+kd+crd,epochs=4", "4 leave 2 for each stage after the second"),
    ("stages=", "stages: there are none"),
    ("weighting=tcp", "'tcp' is now 'teacher_tcp'"),
    ("weighting=constant,tcp_temperature=4.0", "tcp_temperature: 4.0, but weighting 'constant'"),
    ("studnt=resnet8", "unknown 'studnt'; did you mean 'student'"),
  ],
)
def test_a_mistake_in_the_arguments_is_refused(arg, message):
  with pytest.raises(UserError, match=message):
    get_config(arg)


@pytest.mark.parametrize("student, rate", [("resnet20", 0.05), ("MobileNetV2", 0.01), ("ShuffleV1", 0.01)])
def test_each_network_has_its_published_learning_rate(student, rate):
  teacher, student_stage = get_config(f"teacher=resnet32x4,student={student},stages=kd")["stages"]
  assert teacher["optimizer"]["learning_rate"] == 0.05 and student_stage["optimizer"]["learning_rate"] == rate
  (teacher, _) = get_config(f"student={student},stages=kd,learning_rate=0.2")["stages"]
  assert teacher["optimizer"]["learning_rate"] == 0.2


def test_a_given_teacher_is_not_trained():
  config = get_config("teacher=resnet32x4,teacher_variables=teachers/one,student=resnet8x4,stages=fitnet+kd")
  assert config["networks"]["teacher"]["variables"] == "teachers/one"
  assert [stage["network"] for stage in config["stages"]] == ["student", "student"]
