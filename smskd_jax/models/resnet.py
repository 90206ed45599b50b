"""ResNets for 32x32 images, as the knowledge distillation literature uses them.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (section 4.2),
https://arxiv.org/abs/1512.03385

Differences: where the shape changes the shortcut is by default a 1x1 convolution with batch norm (option B of the
paper, whose CIFAR networks use option A, zero padding: `shortcut="A"`); resnet8x4 and resnet32x4 have 32 channels in
the stem and 64, 128, 256 in the stages. Both are those of "Contrastive Representation Distillation" (Tian, Krishnan,
Isola, ICLR 2020, https://arxiv.org/abs/1910.10699), which all later comparisons on CIFAR-100 have kept.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers.basic import Layers
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)  # x4 in the stages, but x2 in the stem
SHORTCUTS = ("A", "B")


def pad_shortcut(x: jax.Array, channels: int, stride: int) -> jax.Array:
  """Shortcut without parameters (option A): strided pixels, padded with zero channels.

  Args:
    x: [b, h, w, c].
    channels: of the result, c or more; of an odd number of zeros one more comes behind.
    stride: of the pixels that are taken, from the first.

  Returns:
    [b, h / stride, w / stride, channels], rounded up.
  """
  zeros = channels - x.shape[-1]
  border = ((0, 0), (0, 0), (0, 0), (zeros // 2, zeros - zeros // 2))
  return jnp.pad(x[:, ::stride, ::stride], border)


class Block(nn.Module):
  """Two 3x3 convolutions around a shortcut."""

  channels: int
  stride: int = 1
  shortcut: str = "B"

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """The sum of both branches [b, h / stride, w / stride, channels]."""
    y = layers.conv(self.channels, 3, stride=self.stride, name="conv1")(x)
    y = nn.relu(layers.norm("bn1")(y))
    last = layers.norm("bn2")
    y = last(layers.conv(self.channels, 3, name="conv2")(y))
    changes = self.stride != 1 or x.shape[-1] != self.channels
    if changes and self.shortcut == "A":
      x = pad_shortcut(x, self.channels, self.stride)
    elif changes:
      x = layers.conv(self.channels, 1, stride=self.stride, name="downsample_0")(x)
      x = layers.norm("downsample_1")(x)
    return FeatureLayer(nn.relu(y + x), y + x, norm_params(last))


class ResNet(nn.Module):
  """A stem and three stages of blocks, of 1, 1, 1/2 and 1/4 of the image's height and width."""

  blocks: int  # in each stage; depth = 6 * blocks + 2
  channels: tuple[int, ...]  # of the stem and of the three stages
  num_classes: int
  shortcut: str = (
    "B"  # where the shape changes: "A" has no parameters, "B" is a 1x1 convolution with batch norm
  )
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels], of any size and number of channels.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with four feature layers: the stem's and the ends of the block groups. The stem's preactivation is taken
      after its ReLU too, as in the public code: methods that read preactivations use those of the block groups.
    """
    layers = Layers(train, axis_name, self.dtype)
    norm = layers.norm("bn1")
    x = nn.relu(norm(layers.conv(self.channels[0], 3, name="conv1")(image)))
    feature_layers = [FeatureLayer(x, x, norm_params(norm))]
    for stage, channels in enumerate(self.channels[1:], start=1):
      for i in range(self.blocks):
        stride = 2 if stage > 1 and i == 0 else 1
        layer = Block(channels, stride, self.shortcut, name=f"layer{stage}_{i}")(x, layers)
        x = layer.feature
      feature_layers.append(layer)
    return make_outputs(feature_layers, x, self.num_classes, name="fc")


def make(
  depth: int,
  channels: tuple[int, ...] = NARROW,
  /,
  *,
  num_classes: int,
  width: float = 1.0,
  shortcut: str = "B",
  dtype: str = "float32",
) -> ResNet:
  """ResNet of `depth` = 6n + 2 layers, with `width` times the channels."""
  if depth < 8 or depth % 6 != 2:
    raise ValueError(f"resnet: depth must be 6n + 2 with n >= 1, got {depth}")
  errors.check_positive_integer("resnet", num_classes=num_classes)
  errors.check_choice("resnet", SHORTCUTS, shortcut=shortcut)
  channels = options.scale_channels("resnet", channels, width)
  return ResNet((depth - 2) // 6, channels, num_classes, shortcut, options.parse_dtype("resnet", dtype))
