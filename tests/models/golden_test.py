"""The model zoo against the public PyTorch networks: names, shapes, numbers."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden
from smskd_jax.exchange import torch_reader
from smskd_jax.models import MODELS, torch_weights
import torch_files

INDEX = golden.index("models")


# One of each family and kind of block.
QUICK = (
  "resnet8",
  "resnet20",
  "resnet8x4",
  "wrn_16_2",
  "vgg8",
  "resnet44",
  "survey_resnet8",
  "ResNet18",
)


def cases(names=None):
  found = INDEX.get("models", {})
  chosen = golden.params((name, name) for name in found if names is None or name in names)
  return [
    one if one.id in QUICK else pytest.param(*one.values, id=one.id, marks=[*one.marks, pytest.mark.slow])
    for one in chosen
  ]


def load(name):
  """The network, its line in the index, and its golden arrays."""
  assert name in MODELS, f"{name} is not in the zoo"
  expected = golden.load("models", f"{name}.npz")
  return MODELS[name](num_classes=expected["logits"].shape[-1]), INDEX["models"][name], expected


def image_shape(network, entry):
  """[h, w, c]: c is that of the first weight; h and w are the first layer's, times what our network divides them by."""
  height, width, _ = entry["taps"][0]
  channels = next(iter(entry["state_dict"].values()))[1]
  image = jnp.zeros((1, 64, 64, channels))
  stride = 64 // jax.eval_shape(network.init_with_output, jax.random.key(0), image)[0].features[0].shape[1]
  return stride * height, stride * width, channels


def through_a_file(weights):
  """The weights as the importer reads them from a checkpoint as public training code leaves it."""
  content = {f"module.{key}": np.asarray(tensor) for key, tensor in weights.items()}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.pth"
    torch_files.write(path, {"epoch": 240, "model": content})
    return torch_reader.find_state_dict(torch_reader.read(path), path)


def run(name, dtype):
  """Our variables and outputs on the golden input, the line in the index, and the golden outputs."""
  network, entry, expected = load(name)
  shape = image_shape(network, entry)
  image = np.random.RandomState(INDEX["salt"]).standard_normal((len(expected["logits"]), *shape))
  weights = golden.state_dict(entry["state_dict"], INDEX["salt"])
  weights = {key: tensor.astype(dtype) for key, tensor in weights.items()}
  variables = torch_weights.from_torch(network, through_a_file(weights), image_shape=shape)
  outputs = jax.jit(network.apply)(variables, image.astype(dtype))
  return variables, jax.tree.map(np.asarray, outputs), entry, expected


def assert_close(outputs, expected, rtol):
  def close(actual, key):
    np.testing.assert_allclose(actual, expected[key], rtol, rtol * np.abs(expected[key]).max(), err_msg=key)

  close(outputs.logits, "logits")
  close(outputs.embedding, "pooled")
  for i, x in enumerate(outputs.features):
    close(x.mean((1, 2)), f"tap_mean.{i}")
  for i, x in enumerate(outputs.preactivations):
    if f"preact_mean.{i}" in expected:
      close(x.mean((1, 2)), f"preact_mean.{i}")


@pytest.mark.parametrize("name", cases())
def test_is_the_public_network(name):
  with jax.enable_x64(True):
    variables, outputs, entry, expected = run(name, np.float64)
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == entry["parameters"]
  weights = golden.state_dict(entry["state_dict"], INDEX["salt"])
  exported = torch_weights.to_torch(variables)
  assert exported.keys() == {key for key in weights if not key.endswith("num_batches_tracked")}
  for key, tensor in exported.items():
    np.testing.assert_array_equal(tensor, weights[key])
  assert all(x.dtype == np.float64 for x in jax.tree.leaves(outputs))
  assert [list(x.shape[1:]) for x in outputs.features] == entry["taps"]
  assert [x.shape for x in outputs.preactivations] == [x.shape for x in outputs.features]
  assert list(outputs.embedding.shape[1:]) == entry["pooled"]
  assert_close(outputs, expected, 1e-6)


@pytest.mark.parametrize("name", cases(["resnet20"]))
def test_outputs_in_float32(name):
  _, outputs, _, expected = run(name, np.float32)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(outputs))
  assert_close(outputs, expected, 1e-3)
