"""ResNets for 32x32 images, as the knowledge distillation literature uses them.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (section 4.2),
https://arxiv.org/abs/1512.03385

Differences: where the shape changes the shortcut is a 1x1 convolution with batch norm (option B of the paper,
whose CIFAR networks use option A, zero padding); resnet8x4 and resnet32x4 have 32 channels in the stem and
64, 128, 256 in the stages. Both are those of "Contrastive Representation Distillation" (Tian, Krishnan,
Isola, ICLR 2020, https://arxiv.org/abs/1910.10699), which all later comparisons on CIFAR-100 have kept.
"""

from typing import Any

from flax import linen as nn
import jax

from smskd_jax.layers.basic import Layers
from smskd_jax.models import options
from smskd_jax.models.outputs import Tap, classify, parameters
from smskd_jax.state import Outputs

NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)  # x4 in the stages, but x2 in the stem


class Block(nn.Module):
  """Two 3x3 convolutions around a shortcut."""

  channels: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> Tap:
    """The sum of both branches [b, h / stride, w / stride, channels], after its ReLU and before."""
    y = layers.conv(self.channels, 3, stride=self.stride, name="conv1")(x)
    y = nn.relu(layers.norm("bn1")(y))
    last = layers.norm("bn2")
    y = last(layers.conv(self.channels, 3, name="conv2")(y))
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = layers.conv(self.channels, 1, stride=self.stride, name="downsample_0")(x)
      x = layers.norm("downsample_1")(x)
    return Tap(nn.relu(y + x), y + x, parameters(last))


class ResNet(nn.Module):
  """A stem and three stages of blocks, of 1, 1, 1/2 and 1/4 of the image's height and width."""

  blocks: int  # in each stage; depth = 6 * blocks + 2
  channels: tuple[int, ...]  # of the stem and of the three stages
  num_classes: int
  dtype: Any = None  # what is computed in

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """What the network says about images.

    Args:
      image: [b, h, w, channels], of any size and number of channels.
      train: whether batch norm uses, and remembers, the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with four taps: the stem's and the stages' ends. The stem's preactivation is taken after its
      ReLU too, as in the public code: methods that want preactivations use those of the stages.
    """
    layers = Layers(train, axis_name, self.dtype)
    norm = layers.norm("bn1")
    x = nn.relu(norm(layers.conv(self.channels[0], 3, name="conv1")(image)))
    taps = [Tap(x, x, parameters(norm))]
    for stage, channels in enumerate(self.channels[1:], start=1):
      for i in range(self.blocks):
        tap = Block(channels, 2 if stage > 1 and i == 0 else 1, name=f"layer{stage}_{i}")(x, layers)
        x = tap.feature
      taps.append(tap)
    return classify(taps, x, self.num_classes, name="fc")


def make(
  depth: int,
  channels: tuple[int, ...] = NARROW,
  /,
  *,
  num_classes: int,
  width: float = 1.0,
  dtype: str = "float32",
) -> ResNet:
  """A ResNet of `depth` = 6n + 2 layers, with `width` times the channels."""
  if depth < 8 or depth % 6 != 2:
    raise ValueError(f"resnet: depth must be 6n + 2 with n >= 1, got {depth}")
  options.check_num_classes("resnet", num_classes)
  channels = options.scale_channels("resnet", channels, width)
  return ResNet((depth - 2) // 6, channels, num_classes, options.dtype("resnet", dtype))
