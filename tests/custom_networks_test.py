"""Tests of a user's own network in a config, and of the errors where it will not do; see custom.py."""

import sys

import pytest

import runs
from smskd_jax import custom, data
from smskd_jax.config import merge, method, network, resolve, stage
from smskd_jax.engine import experiment, plan
from smskd_jax.errors import UserError

MINE = """
from flax import linen as nn
from smskd_jax.models.outputs import FeatureLayer, make_outputs


class Net(nn.Module):
  num_classes: int
  channels: int = 8

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    stem = nn.Conv(self.channels, (3, 3))(image)
    end = nn.Conv(2 * self.channels, (3, 3), strides=2)(nn.relu(stem))
    layers = [FeatureLayer(nn.relu(x), x) for x in (stem, end)]
    return make_outputs(layers, nn.relu(end), self.num_classes, name="head")


class Logits(Net):
  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    return nn.Dense(self.num_classes)(image.reshape(len(image), -1))


class Misshapen(Net):
  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    return make_outputs([FeatureLayer(image, image)], image, 1 + self.num_classes, name="head")


class NoTrain(Net):
  @nn.compact
  def __call__(self, image):
    return image


class NoDefault(nn.Module):
  num_classes: int
  depth: int


class NoClasses(nn.Module):
  depth: int = 3


def make(*, num_classes, channels=4):
  return Net(num_classes, channels)


def number(*, num_classes):
  return num_classes


not_callable = 3
"""


@pytest.fixture(autouse=True)
def my_networks(tmp_path, monkeypatch):
  (tmp_path / "my_networks.py").write_text(MINE)
  (tmp_path / "broken_networks.py").write_text("import nowhere_to_be_found\n")
  monkeypatch.syspath_prepend(tmp_path)
  yield
  for name in ("my_networks", "broken_networks"):
    sys.modules.pop(name, None)


def alone(model, **options):
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  return runs.tiny(
    networks={"student": network(model, **options)}, stages=(stage("student", epochs=1, **common),)
  )


def plans(config):
  resolved = resolve(config)
  return plan.make_plans(resolved, data.load(**merge.drop_keys(resolved["data"], "extra_tests")))


def test_a_class_and_a_function_have_their_options():
  assert network("custom:my_networks:Net").channels == 8
  assert network("custom:my_networks:make", channels=2).channels == 2
  with pytest.raises(UserError, match="unknown 'chanels'; did you mean 'channels'"):
    network("custom:my_networks:Net", chanels=2)
  with pytest.raises(UserError, match="channels: 'many' is not of type int"):
    network("custom:my_networks:Net", channels="many")


def test_trains_as_a_student_and_teaches(tmp_path):
  mine = network("custom:my_networks:Net", channels=4)
  common = {"batch_size": 128, "augment": {"crop_flip": {"padding": 1, "flip": False}}}
  stages = (
    stage("mine", epochs=1, **common),
    stage(
      "student",
      teachers=("mine",),
      methods=(method("fitnet", student_layer=1, teacher_layer=1),),
      epochs=1,
      **common,
    ),
  )
  networks = {"mine": mine, "student": network("resnet8", width=0.125)}
  result = experiment.run(runs.tiny(networks=networks, stages=stages), tmp_path / "run", cpu_devices=2)
  assert [one["model"] for one in result["stages"]] == ["custom:my_networks:Net", "resnet8"]


@pytest.mark.parametrize(
  "model, message",
  [
    ("custom:my_networks", "is not of the form custom:package.module:name"),
    ("custom:no_networks:Net", "cannot import no_networks: No module named"),
    ("custom:broken_networks:Net", "cannot import broken_networks: No module named 'nowhere_to_be_found'"),
    ("custom:my_networks:Nett", "my_networks has no class or function Nett"),
    ("custom:my_networks:not_callable", "my_networks has no class or function not_callable"),
    ("custom:my_networks:NoDefault", "'depth' has no default"),
    ("custom:my_networks:NoClasses", "takes no 'num_classes'"),
  ],
)
def test_what_is_no_factory_is_refused(model, message):
  with pytest.raises(UserError, match=message) as error:
    network(model)
  assert "\n" not in str(error.value) and str(error.value).startswith("network.model: ")


@pytest.mark.parametrize(
  "name, message",
  [
    ("Logits", r"it returns \w+, not smskd_jax.types.Outputs"),
    ("Misshapen", r"its logits are \[1, 11\], not \[b, k\] = \[1, 10\]"),
    ("NoTrain", "not smskd_jax.types.Outputs"),
  ],
)
def test_what_returns_no_outputs_is_refused(name, message):
  with pytest.raises(UserError, match=message) as error:
    plans(alone(f"custom:my_networks:{name}"))
  assert "\n" not in str(error.value) and str(error.value).startswith("config.networks.student: custom:my_")


def test_what_makes_no_module_is_refused():
  with pytest.raises(UserError, match="returns a int, not a flax.linen.module.Module"):
    plans(alone("custom:my_networks:number"))


def test_the_code_belongs_to_the_key(tmp_path):
  (before,) = plans(alone("custom:my_networks:Net"))
  (again,) = plans(alone("custom:my_networks:Net"))
  (tmp_path / "my_networks.py").write_text(MINE.replace("strides=2", "strides=4"))
  (after,) = plans(alone("custom:my_networks:Net"))
  assert before.key == again.key != after.key
  assert custom.code_digest("custom:my_networks:Net") != ""
