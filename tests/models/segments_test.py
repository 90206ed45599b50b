"""Tests of models/segments.py: networks cut at their feature layers."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import marks
import networks
from smskd_jax.models import MODELS, NETWORKS, renormalized
from smskd_jax.models.outputs import FeatureLayer, make_outputs
from smskd_jax.models.segments import cut
from smskd_jax.training.initialization import init_variables
import tiny

# One network of every family, its options and the size of its images. All families can be cut.
FAMILIES = {
  "resnet8": ({"width": 0.25}, 16),
  "resnet8x4": ({"width": 0.125}, 16),
  "ResNet18": ({"width": 0.125}, 16),
  "ResNet50": ({"width": 0.0625}, 16),
  "wrn_10_1": ({"width": 0.5}, 16),
  "vgg8": ({"width": 0.125}, 16),
  "MobileNetV2": ({"width": 0.25}, 32),
  "ShuffleV1": ({"width": 0.125}, 32),
  "ShuffleV2": ({"width": 0.125}, 32),
  "survey_resnet8": ({"width": 0.25}, 16),
  "survey_resnet10": ({"width": 0.125}, 16),
  "imagenet_resnet18": ({"width": 0.125}, 64),
  "imagenet_mobilenet_v1": ({"width": 0.125}, 64),
  "imagenet_mobilenet_v2": ({"width": 0.125}, 64),
  "vit_tiny": ({"width": 0.125}, 16),
  "mixer_tiny": ({"width": 0.125}, 16),
  "cohort": ({"first": "resnet8", "width": 0.25, "peer": "vgg8", "peer_width": 0.125}, 16),
  "simkd": ({"body": "resnet8", "width": 0.25, "teacher": "resnet8x4", "teacher_width": 0.125}, 16),
}
QUICK = ["resnet8", "vgg8", "vit_tiny", "wrn_10_1"]


def make(name, **options):
  """A network of a family, its variables and two images."""
  defaults, size = FAMILIES[name]
  network = MODELS[name](num_classes=7, **defaults | options)
  image = jax.random.normal(jax.random.key(1), (2, size, size, 3))
  return network, init_variables(network, jax.random.key(0), image), image


def cuts_of(outputs):
  return (*outputs.features, outputs.embedding, outputs.logits)


def check_segments(network, variables, image, tolerance=1e-5):
  """Each segment computes the next cut from the network's own; composed, they compute the logits."""

  def run(variables, image):
    expected = cuts_of(network.apply(variables, image))
    segments = cut(network, variables, image)
    actual = tuple(f(x) for f, x in zip(segments, (image, *expected[:-1]), strict=True))
    x = image
    for segment in segments:
      x = segment(x)
    return (*expected, expected[-1]), (*actual, x)

  expected, actual = jax.jit(run, compiler_options=networks.FAST_COMPILE)(variables, image)
  for a, b in zip(actual, expected, strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=tolerance * (1e-6 + np.abs(b).max()))


@pytest.mark.parametrize("name", marks.quick(sorted(FAMILIES), QUICK))
def test_segments_compute_the_network(name):
  check_segments(*make(name))


def test_every_family_is_covered():
  tested = {type(MODELS[name](num_classes=2)) for name in FAMILIES}
  assert {type(make_network(num_classes=2)) for make_network in NETWORKS.values()} <= tested


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_can_be_cut(name):
  size = 64 if name.startswith("imagenet") else 32
  network, image = NETWORKS[name](num_classes=10), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables, outputs = jax.eval_shape(
    lambda x: (network.init(jax.random.key(0), x), network.init_with_output(jax.random.key(0), x)[0]), image
  )
  assert len(cut(network, variables, image)) == len(outputs.features) + 2


def test_half_precision_and_another_normalization_are_the_networks():
  network, variables, image = make("resnet8", dtype="bfloat16")
  check_segments(network, variables, image, tolerance=0.02)
  network, variables, image = make("resnet8")
  other = renormalized.make(network, ((0.5,) * 3, (0.2,) * 3), ((0.4,) * 3, (0.3,) * 3))
  check_segments(other, init_variables(other, jax.random.key(0), image), image)


def test_variables_are_constants_and_images_are_not():
  network, variables, image = tiny.Small(5, 0.25), None, jnp.ones((2, 8, 8, 1))
  variables = init_variables(network, jax.random.key(0), image)

  def logit(variables, image):
    x = image
    for segment in cut(network, variables, image):
      x = segment(x)
    return x[0, 0]

  by_variables, by_image = jax.jit(jax.grad(logit, argnums=(0, 1)))(variables, image)
  assert not any(np.any(x) for x in jax.tree.leaves(by_variables))
  expected = jax.jit(jax.grad(lambda x: network.apply(variables, x).logits[0, 0]))(image)
  np.testing.assert_allclose(by_image, expected, rtol=1e-5, atol=1e-6)
  assert np.any(by_image)


class Compiled(nn.Module):
  """A network inside one call of a compiled function, with running statistics."""

  num_classes: int = 5

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    return nn.jit(tiny.Small, static_argnames=("train", "axis_name"))(self.num_classes, 0.25, name="body")(
      image, train=train, axis_name=axis_name
    )


def test_a_network_inside_a_compiled_function():
  network, image = Compiled(), jnp.ones((2, 8, 8, 1))
  check_segments(network, init_variables(network, jax.random.key(0), image), image)


class Custom(nn.Module):
  """Three layers, with a path around one of them."""

  bypass: str
  num_classes: int = 5

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    def layer(i, x):
      return nn.relu(nn.Dense(4, name=f"dense{i}")(x))

    a = layer(0, image)
    b = layer(1, a)
    if self.bypass == "class token":
      token = self.param("token", nn.initializers.ones, (1, 1, 4))
      tokens = jnp.concatenate([jnp.tile(token, (len(image), 1, 1)), b.reshape(len(image), -1, 4)], axis=1)
      tokens = tokens + jnp.mean(tokens, axis=1, keepdims=True)
      b = tokens[:, 1:].reshape(a.shape)
      c = layer(2, tokens[:, :1] + tokens[:, 1:]).reshape(a.shape)
    elif self.bypass == "shortcut":
      c = layer(2, b) + a
    else:
      c = layer(2, a)  # b is an auxiliary branch
    return make_outputs([FeatureLayer(x, x) for x in (a, b, c)], c, self.num_classes, name="head")


@pytest.mark.parametrize(
  "bypass, message",
  [
    (
      "class token",
      "cannot be cut at feature layer 1: no path leads from there to feature layer 2",
    ),
    ("shortcut", "cannot be cut at feature layer 1: another path leads from the images to feature layer 2"),
    ("branch", "cannot be cut at feature layer 1: no path leads from there to feature layer 2"),
  ],
)
def test_a_path_around_a_feature_layer_is_refused(bypass, message):
  network, image = Custom(bypass), jnp.ones((2, 4, 4, 3))
  variables = init_variables(network, jax.random.key(0), image)
  with pytest.raises(ValueError, match=f"^{message}"):
    cut(network, variables, image)
