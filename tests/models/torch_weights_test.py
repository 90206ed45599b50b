"""Tests of models/torch_weights.py; that its numbers are PyTorch's is the golden test's business."""

import jax
import numpy as np
import pytest

from smskd_jax.models import MODELS, torch_weights

SHAPE = (8, 8, 1)


def network_and_variables(name, dtype=np.float32):
  network = MODELS[name](num_classes=3, width=0.125)
  shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *SHAPE), np.float32))
  rng = np.random.default_rng(0)
  return network, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
  "name",
  [
    "resnet14",
    "resnet8x4",
    "vgg11",
    "ResNet18",
    "wrn_16_2",
    "MobileNetV2",
    "ShuffleV1",
    "ShuffleV2",
    "survey_resnet8",
    "imagenet_mobilenet_v2",
    "vit_tiny",
  ],
)
def test_round_trip_is_exact(name, dtype):
  network, variables = network_and_variables(name, dtype)
  exported = torch_weights.to_torch(variables)
  imported = torch_weights.from_torch(network, exported, image_shape=SHAPE)
  assert jax.tree.structure(imported) == jax.tree.structure(variables)
  for a, b in zip(jax.tree.leaves(imported), jax.tree.leaves(variables), strict=True):
    assert a.dtype == dtype
    np.testing.assert_array_equal(a, b)


def test_layouts():
  _, variables = network_and_variables("resnet8")
  exported = torch_weights.to_torch(variables)
  kernel, tensor = variables["params"]["layer2_0"]["conv1"]["kernel"], exported["layer2.0.conv1.weight"]
  assert tensor[3, 1, 0, 2] == kernel[0, 2, 1, 3]
  assert exported["fc.weight"][2, 5] == variables["params"]["fc"]["kernel"][5, 2]
  assert exported["layer2.0.downsample.1.running_var"] is not None
  assert all(tensor.flags.c_contiguous for tensor in exported.values())


def test_ignores_what_pytorch_adds():
  network, variables = network_and_variables("resnet8")
  exported = {f"module.{key}": tensor for key, tensor in torch_weights.to_torch(variables).items()}
  exported["module.bn1.num_batches_tracked"] = np.array(7)
  imported = torch_weights.from_torch(network, exported, image_shape=SHAPE)
  np.testing.assert_array_equal(
    imported["batch_stats"]["bn1"]["mean"], variables["batch_stats"]["bn1"]["mean"]
  )


def test_copies():
  network, variables = network_and_variables("resnet8")
  exported = torch_weights.to_torch(variables)
  imported = torch_weights.from_torch(network, exported, image_shape=SHAPE)
  exported["fc.bias"][:] = exported["fc.weight"][:] = 0
  assert (imported["params"]["fc"]["bias"] != 0).all() and (imported["params"]["fc"]["kernel"] != 0).all()
  assert (variables["params"]["fc"]["bias"] != 0).all()


def test_names_everything_that_does_not_fit():
  network, variables = network_and_variables("resnet8")
  exported = torch_weights.to_torch(variables)
  del exported["bn1.weight"], exported["layer1.0.bn2.running_mean"]
  exported |= {"fc2.weight": np.zeros((3, 8)), "head.bias": np.zeros(3), "fc.weight": np.zeros((10, 8))}
  exported["conv1.weight"] = np.zeros((2, 3, 3, 3))
  with pytest.raises(ValueError) as error:
    torch_weights.from_torch(network, exported, image_shape=SHAPE)
  message = str(error.value)
  missing, unexpected, shape = message.partition("; ")[2].split("; ")
  assert message.startswith("the checkpoint does not fit ResNet; ")
  assert set(missing.removeprefix("missing: ").split(", ")) == {"bn1.weight", "layer1.0.bn2.running_mean"}
  assert unexpected == "unexpected: fc2.weight, head.bias"
  assert shape.startswith("of another shape: ")
  assert "conv1.weight [2, 3, 3, 3] instead of [2, 1, 3, 3]" in shape
  assert "fc.weight [10, 8] instead of [3, 8]" in shape
