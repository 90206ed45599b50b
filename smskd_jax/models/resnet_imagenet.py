"""ResNets of four stages, ResNet18 to ResNet152: for large images, and for small ones.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385

For large images they are torchvision's, with the stride of a bottleneck on its 3x3 convolution (the paper has it on the
first 1x1). For small ones the stem is a 3x3 convolution of stride 1 and there is no max pooling, as in the comparisons
that follow "Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020,
https://arxiv.org/abs/1910.10699), of which some have taken names of submodules that differ from torchvision's.

Those of the survey "The State of Knowledge Distillation for Classification" (https://arxiv.org/abs/1912.10850) have the
same parameters, but no ReLU between the blocks of a stage (one follows the last), and start as PyTorch's layers do.
"""

from collections.abc import Mapping
import types
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, he_normal, uniform
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

CHANNELS = (64, 64, 128, 256, 512)  # of the stem and of the stages


class DepthSpec(NamedTuple):
  """Blocks of a ResNet of a given depth."""

  blocks: tuple[int, ...]  # in each stage
  bottleneck: bool


DEPTHS: Mapping[int, DepthSpec] = types.MappingProxyType(
  {
    10: DepthSpec((1, 1, 1, 1), bottleneck=False),
    18: DepthSpec((2, 2, 2, 2), bottleneck=False),
    34: DepthSpec((3, 4, 6, 3), bottleneck=False),
    50: DepthSpec((3, 4, 6, 3), bottleneck=True),
    101: DepthSpec((3, 4, 23, 3), bottleneck=True),
    152: DepthSpec((3, 8, 36, 3), bottleneck=True),
  }
)


class Block(nn.Module):
  """Residual block: two 3x3 convolutions, or the bottleneck of 1x1, 3x3 and 1x1."""

  channels: int
  stride: int
  bottleneck: bool
  shortcut: str  # its name
  kernel_init: Any = he_normal

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """The sum of both branches [b, h / stride, w / stride, outputs], after its ReLU and before."""
    outputs = self.channels * (4 if self.bottleneck else 1)
    convolutions: tuple[tuple[int, int, int], ...]  # channels, size, stride
    if self.bottleneck:
      convolutions = ((self.channels, 1, 1), (self.channels, 3, self.stride), (outputs, 1, 1))
    else:
      convolutions = ((self.channels, 3, self.stride), (outputs, 3, 1))
    y = x
    for i, (channels, size, stride) in enumerate(convolutions, start=1):
      y = layers.conv(channels, size, stride=stride, kernel_init=self.kernel_init, name=f"conv{i}")(y)
      norm = layers.norm(f"bn{i}")
      y = norm(y)
      if i < len(convolutions):
        y = nn.relu(y)
    if self.stride != 1 or x.shape[-1] != outputs:
      convolution = layers.conv(
        outputs, 1, stride=self.stride, kernel_init=self.kernel_init, name=f"{self.shortcut}_0"
      )
      x = convolution(x)
      x = layers.norm(f"{self.shortcut}_1")(x)
    return FeatureLayer(nn.relu(y + x), y + x, norm_params(norm))


class ImageNetResNet(nn.Module):
  """Stem and four block groups; the second to fourth halve height and width."""

  depth: DepthSpec
  channels: tuple[int, ...]  # of the stem and of the stages
  num_classes: int
  small_images: bool
  survey: bool = False  # as the survey's: no ReLU between the blocks of a stage
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels], of any size and number of channels.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with five feature layers: the stem's end, before its max pooling, and the stages'. For small images the
      stem's preactivation is taken after its ReLU, as in the public code.
    """
    layers = Layers(train, axis_name, self.dtype)
    stem: dict[str, Any] = {"kernel_size": 3} if self.small_images else {"kernel_size": 7, "stride": 2}
    init = uniform if self.survey else he_normal
    norm = layers.norm("bn1")
    preactivation = norm(layers.conv(self.channels[0], kernel_init=init, name="conv1", **stem)(image))
    x = nn.relu(preactivation)
    feature_layers = [FeatureLayer(x, x if self.small_images else preactivation, norm_params(norm))]
    if not self.small_images:
      border = ((0, 0), (1, 1), (1, 1), (0, 0))
      x = jnp.pad(x, border, constant_values=-jnp.inf)
      x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))
    shortcut = "shortcut" if self.small_images else "downsample"
    for stage, (blocks, channels) in enumerate(
      zip(self.depth.blocks, self.channels[1:], strict=True), start=1
    ):
      for i in range(blocks):
        stride = 2 if stage > 1 and i == 0 else 1
        block = Block(channels, stride, self.depth.bottleneck, shortcut, init, name=f"layer{stage}_{i}")
        layer = block(x, layers)
        x = layer.preactivation if self.survey else layer.feature
      x = layer.feature
      feature_layers.append(layer)
    return make_outputs(feature_layers, x, self.num_classes, name="linear" if self.small_images else "fc")


def make(
  depth: int,
  small_images: bool,
  survey: bool = False,
  /,
  *,
  num_classes: int,
  width: float = 1.0,
  dtype: str = "float32",
) -> ImageNetResNet:
  """ResNet of `depth` layers, for small or large images, or the survey's."""
  errors.check_positive_integer("resnet", num_classes=num_classes)
  channels = options.scale_channels("resnet", CHANNELS, width)
  of = options.parse_dtype("resnet", dtype)
  return ImageNetResNet(DEPTHS[depth], channels, num_classes, small_images, survey, of)
