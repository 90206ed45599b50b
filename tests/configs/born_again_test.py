"""Tests of configs/born_again.py: generations, arguments, and a run."""

import pytest

import runs
from smskd_jax.config import resolve
from smskd_jax.errors import UserError


def get_config(arg=None):
  return resolve(runs.module("configs/born_again.py").get_config(arg))


def test_each_generation_learns_from_the_previous_one():
  config = get_config("generations=2,epochs=3")
  assert [s["network"] for s in config["stages"]] == ["generation_0", "generation_1", "generation_2"]
  assert [s["teachers"] for s in config["stages"]] == [(), ("generation_0",), ("generation_1",)]
  assert {s["epochs"] for s in config["stages"]} == {3}
  assert len({str(network) for network in config["networks"].values()}) == 1
  first, second, _ = config["stages"]
  assert first["methods"] == () and first["task_weight"] == 1
  assert second["task_weight"] + second["methods"][0]["weight"] == 1


@pytest.mark.parametrize("arg", ["generations=0", "weight=1.5", "model=resnet9"])
def test_a_mistake_in_the_arguments_is_refused(arg):
  with pytest.raises(UserError, match=arg.split("=")[0].replace("model", "resnet9")):
    get_config(arg)


@pytest.mark.slow
def test_runs_from_the_command_line(tmp_path):
  arguments = "dataset=digits,model=resnet8,width=0.125,generations=2,epochs=1,batch_size=128,padding=1"
  status, out, err = runs.main(tmp_path, f"--config=configs/born_again.py:{arguments}", "--cpu_devices=2")
  assert status == 0, err
  assert "generation_2" in (tmp_path / "report.md").read_text()
