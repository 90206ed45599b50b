"""Tests of models/transformer.py."""

import jax
import numpy as np
import pytest

from smskd_jax.layers.transformer import Attention
from smskd_jax.models import MODELS, introspection, transformer


def numbers(network, shape, seed=0):
  rng = np.random.default_rng(seed)

  def draw(x):
    return rng.normal(0, 0.2, x.shape).astype(np.float32)

  return jax.tree.map(draw, introspection.variable_shapes(network, shape))


@pytest.mark.parametrize("name", ["vit_tiny", "mixer_tiny"])
def test_taps_are_maps_of_tokens(name):
  outputs = introspection.output_shapes(MODELS[name](num_classes=10), (32, 24, 3))
  assert [x.shape for x in outputs.features] == [(1, 8, 6, 192)] * 5
  assert outputs.final_map.shape == (1, 8, 6, 192)
  large = introspection.output_shapes(MODELS[name](num_classes=10, patch_size=16), (224, 224, 3))
  assert large.features[-1].shape == (1, 14, 14, 192)


def test_parameters_by_hand():
  # A block: two layer norms, qkv, projection, and a perceptron of four times the channels; no positions are learned.
  d = 192
  block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d)
  network = MODELS["vit_tiny"](num_classes=10)
  assert introspection.num_parameters(network, (32, 32, 3)) == (48 * d + d) + 12 * block + 2 * d + (
    10 * d + 10
  )


def test_positions_tell_all_places_apart():
  found = transformer.sinusoidal_positions(7, 5, 16).reshape(35, 16)
  distance = np.linalg.norm(found[:, None] - found[None], axis=-1) + np.eye(35)
  assert distance.min() > 0.1
  # A row further down changes the half of the channels that is of rows, and no other.
  grid = found.reshape(7, 5, 16)
  assert (grid[0, :, :8] == grid[1, :, :8]).all() and (grid[0, :, 8:] != grid[1, :, 8:]).any()


def test_attention_by_hand():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 5, 8)).astype(np.float32)
  attention = Attention(2, None)
  params = {
    name: {
      "kernel": rng.normal(size=(8, size)).astype(np.float32),
      "bias": rng.normal(size=size).astype(np.float32),
    }
    for name, size in (("qkv", 24), ("proj", 8))
  }
  found = jax.jit(attention.apply)({"params": params}, x)
  qkv = x @ params["qkv"]["kernel"] + params["qkv"]["bias"]
  heads = []
  for head in range(2):
    q, k, v = (qkv[..., 8 * part + 4 * head : 8 * part + 4 * head + 4] for part in range(3))
    weight = np.exp(q @ k.swapaxes(1, 2) / 2)
    heads.append(weight / weight.sum(-1, keepdims=True) @ v)
  expected = np.concatenate(heads, -1) @ params["proj"]["kernel"] + params["proj"]["bias"]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_only_positions_know_places(monkeypatch):
  # Two patches that change places change the transformer's mean only through their positions; without them, not at all.
  network = MODELS["vit_tiny"](num_classes=5, width=0.1)
  image = np.random.default_rng(1).normal(size=(1, 8, 8, 3)).astype(np.float32)
  swapped = image.copy()
  swapped[:, :4, :4], swapped[:, 4:, 4:] = image[:, 4:, 4:], image[:, :4, :4]
  variables = numbers(network, (8, 8, 3))

  def logits():
    return [jax.jit(lambda x: network.apply(variables, x).logits)(x) for x in (image, swapped)]

  one, other = logits()
  assert np.abs(one - other).max() > 1e-3
  monkeypatch.setattr(transformer, "sinusoidal_positions", lambda h, w, c: np.zeros((1, h, w, c)))
  one, other = logits()
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patch", [0, -4, 2.5, True])
def test_refuses_bad_patches(patch):
  with pytest.raises(ValueError, match="vit_tiny: patch_size must be a positive integer"):
    MODELS["vit_tiny"](num_classes=5, patch_size=patch)
