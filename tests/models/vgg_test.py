"""Tests of models/vgg.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.models import MODELS, vgg


def sizes(height, width=None):
  network = MODELS["vgg8"](num_classes=10)
  image = jnp.zeros((1, height, width or height, 3))
  outputs, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), image)
  return [x.shape[1] for x in outputs.features]


@pytest.mark.parametrize(
  "height, expected",
  [
    (8, [8, 4, 2, 1, 1]),
    (28, [28, 14, 7, 3, 3]),
    (32, [32, 16, 8, 4, 4]),
    (33, [33, 16, 8, 4, 4]),
    (63, [63, 31, 15, 7, 7]),
    (64, [64, 32, 16, 8, 4]),
    (65, [65, 32, 16, 8, 8]),
  ],
)
def test_last_block_shrinks_at_64_alone(height, expected):
  assert sizes(height) == expected


@pytest.mark.parametrize("size", [(7, 8), (8, 7)])
def test_refuses_images_that_pooling_would_use_up(size):
  with pytest.raises(ValueError, match=f"vgg: images must be at least 8x8, got {size[0]}x{size[1]}"):
    sizes(*size)


def test_refuses_other_depths():
  with pytest.raises(ValueError, match="vgg: depth must be one of 8, 11, 13, 16, 19, got 12"):
    vgg.make(12, num_classes=10)


@pytest.mark.parametrize("depth", vgg.CONVOLUTIONS)
def test_depth_counts_convolutions(depth):
  # The paper's networks have three linear layers, ours and vgg8 one.
  assert sum(vgg.CONVOLUTIONS[depth]) == (5 if depth == 8 else depth - 3)


def test_initial_weights_follow_the_public_code():
  network = MODELS["vgg8"](num_classes=100)

  @jax.jit  # of the whole network, only what is returned is compiled
  def initial(key):
    params = network.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
    return params["block3_0"], params["classifier"]

  conv, classifier = initial(jax.random.key(0))
  np.testing.assert_allclose(conv["kernel"].std(), np.sqrt(2 / (512 * 9)), rtol=0.01)
  np.testing.assert_allclose(classifier["kernel"].std(), 0.01, rtol=0.03)
  assert (conv["bias"] == 0).all() and (classifier["bias"] == 0).all()
