"""Tests of models/resnet.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.layers.basic import Layers
from smskd_jax.models import MODELS, introspection, resnet, torch_weights

IMAGE = jnp.zeros((1, 32, 32, 3))


def shapes(network):
  return jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGE)


def test_half_width_for_small_experiments():
  outputs, _ = shapes(MODELS["resnet8"](num_classes=10, width=0.5))
  assert [x.shape for x in outputs.features] == [
    (1, 32, 32, 8),
    (1, 32, 32, 8),
    (1, 16, 16, 16),
    (1, 8, 8, 32),
  ]


def test_width_leaves_at_least_one_channel():
  outputs, _ = shapes(MODELS["resnet8"](num_classes=10, width=0.001))
  assert outputs.embedding.shape == (1, 1)


def test_depth_counts_convolutions_and_the_classifier():
  # Without the shortcuts, as the paper counts.
  _, variables = shapes(MODELS["resnet20"](num_classes=10))
  paths = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
  assert len([path for path in paths if "kernel" in path and "downsample" not in path]) == 20


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_refuses_other_depths(depth):
  with pytest.raises(ValueError, match=rf"resnet: depth must be 6n \+ 2 with n >= 1, got {depth}"):
    resnet.make(depth, num_classes=10)


def test_initial_weights_follow_he_and_pytorch():
  network = MODELS["resnet8x4"](num_classes=100)

  @jax.jit  # of the whole network, only what is returned is compiled
  def initial(key):
    params = network.init(key, IMAGE)["params"]
    return params["layer3_0"]["conv2"]["kernel"], params["layer2_0"]["downsample_0"]["kernel"], params["fc"]

  conv, shortcut, classifier = initial(jax.random.key(0))
  np.testing.assert_allclose(conv.std(), np.sqrt(2 / (256 * 9)), rtol=0.01)
  np.testing.assert_allclose(shortcut.std(), np.sqrt(2 / 128), rtol=0.03)
  assert np.abs(conv).max() > 4 * conv.std()  # a normal distribution, not a truncated one
  bound = 1 / np.sqrt(256)
  for values in (classifier["kernel"], classifier["bias"]):
    assert np.abs(values).max() <= bound
    np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.15)


def test_shortcut_without_parameters():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
  expected = np.zeros((2, 3, 3, 7), np.float32)
  for i in range(4):
    expected[..., 1 + i] = x[:, ::2, ::2, i]  # one channel of zeros before and two behind
  np.testing.assert_array_equal(resnet.pad_shortcut(x, 7, 2), expected)


def test_a_block_with_a_shortcut_without_parameters():
  """The block's sum, by NumPy, where the convolutions and norms are made to be zero but for an offset."""
  block = resnet.Block(6, 2, "A")
  x = np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32)
  layers = Layers(train=False, axis_name=None)
  variables = jax.eval_shape(lambda key: block.init(key, x, layers), jax.random.key(0))
  assert set(variables["params"]) == {"conv1", "bn1", "conv2", "bn2"}
  variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
  variables["params"]["bn2"]["bias"] = jnp.arange(6.0)
  expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1))) + np.arange(6.0)
  tap = block.apply(variables, x, layers)
  np.testing.assert_allclose(tap.preactivation, expected, rtol=1e-6)
  np.testing.assert_allclose(tap.feature, np.maximum(expected, 0), rtol=1e-6)


def test_option_a_has_the_papers_parameters():
  # He et al., table 6: 0.85 M of 56 layers, for ten classes.
  network = MODELS["resnet56"](num_classes=10, shortcut="A")
  assert introspection.num_parameters(network, (32, 32, 3)) == 853_018
  assert not [key for key in torch_weights.torch_shapes(network) if "downsample" in key]


def test_refuses_other_shortcuts():
  with pytest.raises(ValueError, match="resnet: shortcut must be one of A, B, got 'C'"):
    MODELS["resnet8"](num_classes=10, shortcut="C")
