"""Tests of exchange/stablehlo_file.py and onnx_file.py: programs of every kind of network say what the network says."""

import importlib.util
import subprocess
import sys

import jax
import numpy as np
import pytest

import marks
import runs
from smskd_jax.exchange import safetensors_file, stablehlo_file
from smskd_jax.exchange.exported_network import ExportedNetwork
from smskd_jax.models import introspection

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
    name: np.asarray(jax.jit(network.program(), compiler_options=quick)(images))
    for name, network in networks.items()
  }


def close(found, wanted):
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
  "name", marks.quick(["vgg8", "ShuffleV1", "imagenet_resnet18", "vit_tiny"], ["vgg8"])
)
def test_stablehlo(name, networks, images, expected, tmp_path):
  stablehlo_file.write(networks[name], tmp_path / "program")
  exported = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
  close(exported.call(images), expected[name])


CONVERT = """
import pathlib, sys
from smskd_jax.exchange import onnx_file, safetensors_file
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
  onnx_file.write(safetensors_file.read(path), path.with_suffix(".onnx"))
"""


@pytest.mark.slow  # tests/export_test.py has one network
@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="needs jax2onnx")
def test_onnx(networks, images, expected, tmp_path):
  import onnxruntime

  for name, network in networks.items():
    safetensors_file.write(network, tmp_path / f"{name}.safetensors")
  # In a process of its own, because jax2onnx changes Flax where it is imported.
  command = [sys.executable, "-W", "ignore", "-c", CONVERT, str(tmp_path)]
  subprocess.run(command, cwd=runs.ROOT, check=True)
  for name, wanted in expected.items():
    session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"))
    (found,) = session.run(["logits"], {"images": images})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
