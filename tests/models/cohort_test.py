"""Tests of models/cohort.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.models import MODELS, cohort

# Compiled in haste, because each program runs once.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
OPTIONS = {"num_classes": 5, "first": "resnet8", "width": 0.25, "peer": "vgg8", "peer_width": 0.125}


def make(**options):
  return cohort.make(MODELS, **OPTIONS | options)


def images(b=4):
  return np.random.default_rng(b).normal(size=(b, 8, 8, 3))


def shapes_of(network, shape=(8, 8, 3)):
  image = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  return jax.eval_shape(network.init_with_output, jax.random.key(0), image)


def variables_of(network):
  """Random variables, from NumPy because to compile an initialisation takes long."""
  rng = np.random.default_rng(0)
  _, shapes = shapes_of(network)
  params = jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape), shapes["params"])
  return {"params": params, "batch_stats": jax.tree.map(lambda x: np.ones(x.shape), shapes["batch_stats"])}


def test_says_what_each_member_says(float64):
  network = make(num_peers=2)
  variables = variables_of(network)
  outputs = quick(network.apply)(variables, images())
  assert len(outputs.peer_outputs) == 2
  kinds = [("resnet8", 0.25), ("vgg8", 0.125), ("vgg8", 0.125)]
  for i, (found, (name, width)) in enumerate(zip((outputs, *outputs.peer_outputs), kinds, strict=True)):
    own = {collection: tree[f"members_{i}"] for collection, tree in variables.items()}
    expected = quick(MODELS[name](num_classes=5, width=width).apply)(own, images())
    jax.tree.map(np.testing.assert_array_equal, found._replace(peer_outputs=()), expected)


def test_equal_members_start_from_different_weights():
  network = make(peer="resnet8", peer_width=0.25, num_peers=2)

  @quick
  def first_layers(key):
    params = network.init(key, images().astype(np.float32))["params"]
    return [params[f"members_{i}"]["conv1"]["kernel"] for i in range(3)]

  first = first_layers(jax.random.key(0))
  assert all((first[i] != first[j]).any() for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("shape", [(8, 8, 3), (33, 33, 3), (9, 17, 1)])
def test_any_image(shape):
  with jax.enable_x64(True):  # nothing is promoted even then
    outputs, variables = shapes_of(make(), shape)
  assert set(variables) == {"params", "batch_stats"}
  assert [x.logits.shape for x in (outputs, *outputs.peer_outputs)] == [(2, 5), (2, 5)]
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((outputs, variables)))


def test_statistics_span_the_devices(float64):
  network = make()
  variables = variables_of(network)

  def train(image, axis_name=None):
    outputs, state = network.apply(variables, image, train=True, axis_name=axis_name, mutable=["batch_stats"])
    return [x.logits for x in (outputs, *outputs.peer_outputs)], state

  one, state = quick(train)(images(8))
  on_each = jax.pmap(lambda x: train(x, "batch"), axis_name="batch", devices=jax.devices()[:4])
  many, states = on_each(images(8).reshape(4, 2, 8, 8, 3))

  def close(a, b):
    return np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)

  jax.tree.map(lambda a, b: close(b.reshape(a.shape), a), one, many)
  jax.tree.map(lambda a, b: close(b, np.broadcast_to(a, b.shape)), state, states)
  before = jax.tree.leaves(variables["batch_stats"])
  assert all((a != b).any() for a, b in zip(jax.tree.leaves(state), before, strict=True))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"first": "resnet9"}, "cohort: first must be one of resnet8, .*, got 'resnet9'"),
    ({"peer": ""}, "cohort: peer must be one of resnet8, .*, got ''"),
    ({"num_peers": 0}, "cohort: num_peers must be a positive integer, got 0"),
    ({"num_peers": 1.0}, "cohort: num_peers must be a positive integer, got 1.0"),
    ({"num_peers": True}, "cohort: num_peers must be a positive integer, got True"),
    ({"width": 0.0}, "^resnet: width must be a positive number, got 0.0"),
    ({"peer_width": 0.0}, "^cohort: peer: vgg: width must be a positive number, got 0.0"),
    ({"num_classes": 0}, "^resnet: num_classes must be a positive integer, got 0"),
  ],
)
def test_refuses_options(options, message):
  with pytest.raises(ValueError, match=message):
    make(**options)


def test_equal_options_make_equal_networks():
  assert make() == make() and hash(make()) == hash(make())
  assert make() != make(num_peers=2)
