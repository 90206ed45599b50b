"""Tests of configs/imagenet.py: the recipe of the literature, and a run on a folder with ImageNet's layout."""

import json

import pytest

from photographs import write_folder
import runs
from smskd_jax.config import resolve
from smskd_jax.errors import UserError


def get_config(arg=None):
  return resolve(runs.module("configs/imagenet.py").get_config(arg))


def test_the_recipe_is_that_of_the_literature():
  config = get_config("stages=dkd+kd")
  teacher, dkd, kd = config["stages"]
  assert config["data"]["streamed"] and config["data"]["image_size"] == 224
  assert (config["data"]["min_crop_area"], config["data"]["center_crop_fraction"]) == (0.08, 0.875)
  for stage in config["stages"]:
    expected = {"learning_rate": 0.1, "base_batch_size": 256, "momentum": 0.9, "weight_decay": 1e-4}
    assert stage["optimizer"].items() >= expected.items()
    assert stage["schedule"]["milestones"] == (0.3, 0.6, 0.9)
    assert stage["augment"]["crop_flip"] == {"padding": 0, "flip": True, "num_views": 0}
  assert (teacher["epochs"], dkd["epochs"], kd["epochs"]) == (100, 30, 70)
  assert kd["reference"]["stage"] == "previous"
  assert (kd["task_weight"], kd["methods"][0]["weight"], kd["methods"][0]["temperature"]) == (0.5, 0.5, 1.0)
  assert (dkd["methods"][0]["beta"], dkd["methods"][0]["temperature"]) == (0.5, 1.0)
  assert dkd["methods"][0]["warmup_epochs"] == 1.0


def test_the_second_pair_has_its_own_published_weights():
  arg = "teacher=imagenet_resnet50,student=imagenet_mobilenet_v1,stages=dkd+reviewkd,teacher_variables=there"
  dkd, reviewkd = get_config(arg)["stages"]
  assert dkd["methods"][0]["beta"] == 2.0 and reviewkd["methods"][0]["weight"] == 8.0


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("stages=dkdd", "argument stages: unknown 'dkdd'; did you mean 'dkd'"),
    ("protocol=none", "argument protocol: unknown 'none'"),
    ("epochs=1,stages=dkd+kd", "0 is not inside the 1 epochs"),
  ],
)
def test_a_mistake_in_the_arguments_is_refused(arg, message):
  with pytest.raises(UserError, match=message):
    get_config(arg)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("teacher", "student"),
  [("imagenet_resnet34", "imagenet_resnet18"), ("imagenet_resnet50", "imagenet_mobilenet_v1")],
)
def test_narrow_networks_learn_photographs(teacher, student, tmp_path):
  """Two classes of crops of two photographs, in many sizes."""
  folder = write_folder(tmp_path / "imagenet", 120)
  arguments = (
    f"dataset=folder:{folder},teacher={teacher},student={student},image_size=64,batch_size=48,stages=dkd+kd"
  )
  arguments += ",epochs=16,teacher_epochs=8,learning_rate=0.4"
  narrow = [f"--config.networks.{name}.width=0.125" for name in ("teacher", "student")]
  status, out, err = runs.main(tmp_path / "run", f"--config=configs/imagenet.py:{arguments}", *narrow)
  assert status == 0, err
  result = json.loads((tmp_path / "run" / "result.json").read_text())
  assert [stage["name"] for stage in result["stages"]] == ["teacher", "1_dkd", "2_kd"]
  # Nearly 1 where this was measured; chance is 0.5. Another processor rounds differently.
  assert result["stages"][-1]["metrics"]["last"]["test/accuracy"] > 0.65
