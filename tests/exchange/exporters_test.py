"""Tests of exchange/exporters.py: exported programs compute the network's logits, and PyTorch files its tensors."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import marks
import runs
from smskd_jax.exchange import exported_network, exporters
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.models import introspection, torch_weights

SHAPE = (16, 16, 3)
# Between them: every kind of pooling, groups and shuffles, padding by zeros and by none, attention.
NETWORKS = {
  "vgg8": {"width": 0.125},
  "wrn_10_1": {},
  "MobileNetV2": {"width": 0.25},
  "ShuffleV1": {"width": 0.125},
  "ShuffleV2": {"width": 0.25},
  "survey_resnet8": {"width": 0.25},
  "imagenet_resnet18": {"width": 0.125},
  "vit_tiny": {"width": 0.125},
  "mixer_tiny": {"width": 0.125},
}


@pytest.fixture(scope="module")
def networks():
  """Networks with numbers in the place of what training leaves, spread widely enough for every part to matter."""
  made = {}
  for name, options in NETWORKS.items():
    trained = ExportedNetwork(
      name, options, {}, SHAPE, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), ("a", "b", "c", "d")
    )
    rng = np.random.default_rng(len(made))
    draw = {
      "params": lambda x, rng=rng: rng.normal(0, 0.3, x.shape).astype(np.float32),
      "batch_stats": lambda x, rng=rng: rng.uniform(0.5, 1.5, x.shape).astype(np.float32),
    }
    shapes = introspection.variable_shapes(trained.network, SHAPE)
    variables = {collection: jax.tree.map(draw[collection], tree) for collection, tree in shapes.items()}
    made[name] = trained._replace(variables=variables)
  return made


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)


@pytest.fixture(scope="module")
def expected(networks, images):
  quick = {"xla_backend_optimization_level": "0"}
  return {
    name: np.asarray(jax.jit(network.inference_fn(), compiler_options=quick)(images))
    for name, network in networks.items()
  }


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
  "name", marks.quick(["vgg8", "ShuffleV1", "imagenet_resnet18", "vit_tiny"], ["vgg8"])
)
def test_stablehlo(name, networks, images, expected, tmp_path):
  exporters.write_stablehlo(networks[name], tmp_path / "program")
  exported = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
  close(exported.call(images), expected[name])


CONVERT = """
import pathlib, sys
from smskd_jax.exchange import exported_network, exporters
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
  exporters.write_onnx(exported_network.read(path), path.with_suffix(".onnx"))
"""


@pytest.mark.slow  # tests/export_test.py has one network
@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs jax2onnx")
def test_onnx(networks, images, expected, tmp_path):
  import onnxruntime

  for name, network in networks.items():
    exported_network.write(network, tmp_path / f"{name}.safetensors")
  # In a process of its own, because jax2onnx changes Flax where it is imported.
  command = [sys.executable, "-W", "ignore", "-c", CONVERT, str(tmp_path)]
  subprocess.run(command, cwd=runs.ROOT, check=True)
  for name, wanted in expected.items():
    session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"))
    (found,) = session.run(["logits"], {"images": images})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_torch_safetensors_have_the_names_and_axes_of_pytorch(networks, tmp_path):
  network = networks["vgg8"]
  exporters.write_torch(network, tmp_path / "file.safetensors")
  tensors = exported_network.read_tensors(tmp_path / "file.safetensors")
  kernel = network.variables["params"]["block0_0"]["kernel"]  # [h, w, in, out]
  np.testing.assert_array_equal(tensors["block0.0.weight"], kernel.transpose(3, 2, 0, 1))
  back = torch_weights.from_torch(network.network, tensors, image_shape=SHAPE)
  jax.tree.map(np.testing.assert_array_equal, back, network.variables)


def test_pytorch_loads_torch_safetensors(networks, tmp_path):
  torch = pytest.importorskip("torch")
  from safetensors import safe_open
  from safetensors.torch import load_file

  network = networks["vgg8"]._replace(class_names=("Köter", "cat", "c", "d"))
  exporters.write_torch(network, tmp_path / "file.safetensors")
  tensors = load_file(tmp_path / "file.safetensors")
  layer = torch.nn.BatchNorm2d(len(tensors["block0.1.weight"]))
  layer.load_state_dict(
    {name.removeprefix("block0.1."): x for name, x in tensors.items() if "block0.1." in name}
  )
  np.testing.assert_array_equal(layer.running_var, network.variables["batch_stats"]["block0_1"]["var"])
  with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
    header = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
  assert header == {
    "class_names": ["Köter", "cat", "c", "d"],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.25],
  }


def test_a_network_without_a_pytorch_counterpart_is_refused(tmp_path):
  network = ExportedNetwork("simkd", {}, {}, (8, 8, 1), (0.0,), (1.0,), ("a", "b"))
  with pytest.raises(ValueError, match="--format: torch_safetensors: 'simkd' has no counterpart"):
    exporters.write_torch(network, tmp_path / "file")
