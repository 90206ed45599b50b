"""Tests of models/simkd.py."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.models import MODELS, simkd

ROOT = pathlib.Path(__file__).parents[2]
# Compiled in haste, because each program runs once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
TEACHERS = {"teacher": "resnet8", "teacher_width": 0.5}  # 32 channels


def make(**options):
  return simkd.make(MODELS, **{"num_classes": 5, "body": "resnet8", "width": 0.25} | TEACHERS | options)


def images(b=4):
  return np.random.default_rng(b).normal(size=(b, 8, 8, 3))


def shapes_of(network, shape=(8, 8, 3)):
  image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  return jax.eval_shape(network.init_with_output, jax.random.key(0), image)


def variables_of(network):
  """Random variables, from NumPy because to compile an initialisation takes long; the classifier is not zero."""
  rng = np.random.default_rng(0)
  _, shapes = shapes_of(network)
  variables = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), shapes)
  return variables | {
    "batch_stats": jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), shapes["batch_stats"])
  }


@pytest.fixture(scope="module")
def example():
  """A network, its variables and what it says, in float64."""
  with jax.enable_x64(True):
    network = make()
    variables = variables_of(network)
    return network, variables, quick(network.apply)(variables, images())


def test_the_classifier_is_no_parameter_and_zero_until_it_is_filled_in():
  _, variables = shapes_of(make())
  assert set(variables) == {"params", "batch_stats", "head"}
  assert set(variables["params"]) == set(variables["batch_stats"]) == {"body", "projector"}
  assert jax.tree.map(jnp.shape, variables["head"]) == {"kernel": (32, 5), "bias": (5,)}
  head = quick(lambda key: make().init(key, images().astype(np.float32))["head"])(jax.random.key(0))
  assert not any(x.any() for x in jax.tree.leaves(head))


def test_logits_are_the_classifiers_of_the_mean_of_the_projected_map(example, float64):
  _, variables, outputs = example
  assert outputs.final_map.shape == (4, 2, 2, 32) and not np.asarray(outputs.final_map).min()
  pooled = np.asarray(outputs.final_map).mean((1, 2))
  np.testing.assert_allclose(outputs.embedding, pooled, rtol=1e-12)
  head = variables["head"]
  np.testing.assert_allclose(outputs.logits, pooled @ head["kernel"] + head["bias"][None], rtol=1e-9)
  np.testing.assert_array_equal(outputs.head.kernel, head["kernel"])
  np.testing.assert_array_equal(outputs.head.bias, head["bias"])


def test_taps_are_those_of_the_body(example, float64):
  _, variables, outputs = example
  body = {name: variables[name]["body"] for name in ("params", "batch_stats")}
  expected = quick(MODELS["resnet8"](num_classes=5, width=0.25).apply)(body, images())
  for field in ("features", "preactivations", "norms"):
    jax.tree.map(np.testing.assert_array_equal, getattr(outputs, field), getattr(expected, field))


def test_training_moves_the_statistics_and_neither_it_nor_a_gradient_the_classifier(example, float64):
  network, variables, _ = example

  @quick
  def step(params):
    def loss(params):
      others = {name: variables[name] for name in ("batch_stats", "head")}
      outputs, state = network.apply({"params": params} | others, images(), train=True, mutable=list(others))
      return jnp.square(outputs.logits - 1).mean(), state

    return jax.grad(loss, has_aux=True)(params)

  gradient, state = step(variables["params"])
  jax.tree.map(np.testing.assert_array_equal, state["head"], variables["head"])
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["batch_stats"], variables["batch_stats"])
  assert all(jax.tree.leaves(moved))
  learns = jax.tree.map(lambda x: bool(x.any()), gradient)
  unused = learns["body"].pop("fc")
  assert all(jax.tree.leaves(learns)) and not any(jax.tree.leaves(unused))


def test_statistics_span_the_devices(example, float64):
  network, variables, _ = example

  def train(image, axis_name=None):
    outputs, state = network.apply(
      variables, image, train=True, axis_name=axis_name, mutable=["batch_stats", "head"]
    )
    return outputs.final_map, outputs.logits, state

  *one, state = quick(train)(images(8))
  on_each = jax.pmap(lambda x: train(x, "batch"), axis_name="batch", devices=jax.devices()[:4])
  *many, states = on_each(images(8).reshape(4, 2, 8, 8, 3))

  def close(a, b):
    return np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)

  jax.tree.map(lambda a, b: close(b.reshape(a.shape), a), one, many)
  jax.tree.map(lambda a, b: close(b, np.broadcast_to(a, b.shape)), state, states)


@pytest.mark.parametrize("shape", [(8, 8, 3), (33, 33, 3), (9, 17, 1)])
@pytest.mark.parametrize("body, teacher, channels", [("resnet8", "vgg8", 128), ("vgg8", "resnet8x4", 64)])
def test_any_image_and_any_pair(shape, body, teacher, channels):
  with jax.enable_x64(True):  # nothing is promoted even then
    outputs, variables = shapes_of(make(body=body, teacher=teacher, teacher_width=0.25), shape)
  assert outputs.logits.shape == (2, 5) and outputs.embedding.shape == (2, channels)
  assert outputs.final_map.shape[-1] == channels
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((outputs, variables)))


@pytest.mark.parametrize("factor, between", [(2.0, 16), (4.0, 8), (5, 6), (100.0, 1)])
def test_factor_narrows_the_projector(factor, between):
  kernels = shapes_of(make(factor=factor))[1]["params"]["projector"]
  found = [kernels[f"conv{i}"]["kernel"].shape for i in (1, 2, 3)]
  assert found == [(1, 1, 16, between), (3, 3, between, between), (1, 1, between, 32)]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"body": "resnet9"}, "simkd: body must be one of resnet8, .*, got 'resnet9'"),
    ({"teacher": ""}, "simkd: teacher must be one of resnet8, .*, got ''"),
    ({"width": 0.0}, "^resnet: width must be a positive number, got 0.0"),
    ({"teacher_width": -1.0}, "^simkd: teacher: resnet: width must be a positive number, got -1.0"),
    ({"num_classes": 0}, "^resnet: num_classes must be a positive integer, got 0"),
    ({"factor": 0.0}, "^simkd: factor must be a positive number, got 0.0"),
    ({"factor": True}, "^simkd: factor must be a positive number, got True"),
    ({"factor": float("inf")}, "^simkd: factor must be a positive number, got inf"),
  ],
)
def test_refuses_options(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_equal_options_make_equal_networks():
  # What is compiled for a network is kept by the network.
  assert make() == make() and hash(make()) == hash(make())
  assert make() != make(factor=4.0)


def test_to_make_one_does_not_start_jax():
  # A config is checked, which makes its networks, before the number of devices is chosen.
  code = (
    "import jax; from smskd_jax.models import MODELS, simkd; simkd.make(MODELS, num_classes=5, teacher='resnet8');"
    "jax.config.update('jax_num_cpu_devices', 3); print(len(jax.local_devices(backend='cpu')))"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
  assert done.stdout.split() == ["3"]
