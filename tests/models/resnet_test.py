"""Tests of models/resnet.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.models import MODELS, resnet

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
  assert outputs.pooled.shape == (1, 1)


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
