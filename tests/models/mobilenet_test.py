"""Tests of models/mobilenet_v1.py and mobilenet_v2.py in their ImageNet form."""

import pytest

from smskd_jax.models import MODELS, introspection, torch_weights

SHAPE = (224, 224, 3)


# V1: 4.2 million in table 8 of the paper, this number by its layers; V2: torchvision's documentation.
@pytest.mark.parametrize(
  "name, parameters", [("imagenet_mobilenet_v1", 4_231_976), ("imagenet_mobilenet_v2", 3_504_872)]
)
def test_parameters(name, parameters):
  assert introspection.num_parameters(MODELS[name](num_classes=1000), SHAPE) == parameters


# Multiply-adds of the papers: 569 million (V1, table 8) and 300 million (V2, table 4).
@pytest.mark.parametrize("name, flops", [("imagenet_mobilenet_v1", 569e6), ("imagenet_mobilenet_v2", 300e6)])
def test_flops(name, flops):
  network = MODELS[name](num_classes=1000)
  assert introspection.forward_flops(network, SHAPE) / 2 == pytest.approx(flops, rel=0.05)


def test_names_of_v2_are_torchvisions():
  shapes = torch_weights.torch_shapes(MODELS["imagenet_mobilenet_v2"](num_classes=1000))
  assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
  assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)
  assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)
  assert shapes["features.2.conv.0.0.weight"] == (96, 16, 1, 1)
  assert shapes["features.17.conv.3.running_mean"] == (320,)
  assert shapes["features.18.0.weight"] == (1280, 320, 1, 1)
  assert shapes["classifier.1.weight"] == (1000, 1280)
