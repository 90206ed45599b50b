"""Tests of models/resnet_imagenet.py: torchvision's names and numbers of parameters."""

import jax
import numpy as np
import pytest

from smskd_jax.models import MODELS, introspection, torch_weights

SHAPE = (224, 224, 3)


# Of torchvision's documentation.
@pytest.mark.parametrize("depth, parameters", [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_parameters_are_torchvisions(depth, parameters):
  network = MODELS[f"imagenet_resnet{depth}"](num_classes=1000)
  assert introspection.num_parameters(network, SHAPE) == parameters


def names(blocks, convolutions, first_has_shortcut):
  """The keys of torchvision's ResNets, from how its classes are built."""

  def norm(prefix):
    return [f"{prefix}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]

  yield from ("conv1.weight", "fc.weight", "fc.bias", *norm("bn1"))
  for stage, count in enumerate(blocks, start=1):
    for block in range(count):
      prefix = f"layer{stage}.{block}"
      for i in range(1, convolutions + 1):
        yield from (f"{prefix}.conv{i}.weight", *norm(f"{prefix}.bn{i}"))
      if block == 0 and (stage > 1 or first_has_shortcut):
        yield from (f"{prefix}.downsample.0.weight", *norm(f"{prefix}.downsample.1"))


@pytest.mark.parametrize(
  "depth, blocks, convolutions, first_has_shortcut",
  [(18, (2, 2, 2, 2), 2, False), (34, (3, 4, 6, 3), 2, False), (50, (3, 4, 6, 3), 3, True)],
)
def test_names_are_torchvisions(depth, blocks, convolutions, first_has_shortcut):
  network = MODELS[f"imagenet_resnet{depth}"](num_classes=1000)
  assert set(torch_weights.torch_shapes(network)) == set(names(blocks, convolutions, first_has_shortcut))


def test_taps_of_a_large_image():
  outputs = introspection.output_shapes(MODELS["imagenet_resnet50"](num_classes=1000), SHAPE)
  shapes = [(1, 112, 112, 64), (1, 56, 56, 256), (1, 28, 28, 512), (1, 14, 14, 1024), (1, 7, 7, 2048)]
  assert [x.shape for x in outputs.features] == shapes


def test_flops_are_those_of_the_paper():
  # He et al., table 1, count a multiply-add once: 1.8e9 for 18 layers, 3.8e9 for 50. torchvision has the stride of a
  # bottleneck in its 3x3 convolution, which makes 4.1e9 of the latter. Ours leave out products with the border's zeros.
  for depth, flops in ((18, 1.8e9), (50, 4.1e9)):
    network = MODELS[f"imagenet_resnet{depth}"](num_classes=1000)
    assert introspection.forward_flops(network, SHAPE) / 2 == pytest.approx(flops, rel=0.08)


def test_pooling_is_of_windows_of_three_by_three():
  # Blocks whose convolutions are zero add nothing: the first stage ends in what was pooled.
  network, shape = MODELS["imagenet_resnet18"](num_classes=3, width=0.125), (23, 32, 3)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), introspection.variable_shapes(network, shape)
  )
  for name in ("layer1_0", "layer1_1"):
    variables["params"][name] = jax.tree.map(np.zeros_like, variables["params"][name])
  variables["batch_stats"] = jax.tree.map(lambda x: np.ones(x.shape, np.float32), variables["batch_stats"])
  stem, pooled, *_ = jax.jit(network.apply)(
    variables, rng.normal(size=(2, *shape)).astype(np.float32)
  ).features
  padded = np.pad(stem, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros: after ReLU, none is above
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, ::2, ::2]
  np.testing.assert_array_equal(pooled, windows.max((-2, -1)))
  assert np.ptp(pooled) > 1
