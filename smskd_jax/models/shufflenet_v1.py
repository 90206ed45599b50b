"""ShuffleNetV1 for small images, as the knowledge distillation literature uses it.

Zhang, Zhou, Lin, Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", CVPR 2018,
https://arxiv.org/abs/1707.01083

Differences: the stem is a 1x1 convolution of stride 1 without max pooling. It is that of "Contrastive Representation
Distillation" (Tian, Krishnan, Isola, ICLR 2020, https://arxiv.org/abs/1910.10699). Weights start as PyTorch's.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, shuffle_channels, uniform
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

CHANNELS = (24, 240, 480, 960)  # of the stem and of the stages
BLOCKS = (4, 8, 4)
GROUPS = 3


class Block(nn.Module):
  """Residual block: grouped 1x1, channel shuffle, depthwise 3x3, grouped 1x1 convolution."""

  channels: int  # of the residual branch, which is added to x or, with stride 2, concatenated
  stride: int
  groups: int  # of the first convolution; the last has GROUPS

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """[b, h / stride, w / stride, c]; c is `channels`, with stride 2 plus those of x."""
    between = max(GROUPS, self.channels // 4 // GROUPS * GROUPS)
    y = layers.conv(between, 1, groups=self.groups, kernel_init=uniform, name="conv1")(x)
    y = shuffle_channels(nn.relu(layers.norm("bn1")(y)), self.groups)
    depthwise = {"stride": self.stride, "groups": between, "kernel_init": uniform}
    y = nn.relu(layers.norm("bn2")(layers.conv(between, 3, name="conv2", **depthwise)(y)))
    last = layers.norm("bn3")
    y = last(layers.conv(self.channels, 1, groups=GROUPS, kernel_init=uniform, name="conv3")(y))
    if self.stride == 1:
      return FeatureLayer(nn.relu(y + x), y + x, norm_params(last))
    border = ((0, 0), (1, 1), (1, 1), (0, 0))  # whose zeros count in the mean
    x = nn.avg_pool(jnp.pad(x, border), window_shape=(3, 3), strides=(2, 2))
    y = jnp.concatenate([y, x], axis=-1)
    return FeatureLayer(nn.relu(y), y)


class ShuffleNetV1(nn.Module):
  """A stem and three stages, of 1, 1/2, 1/4 and 1/8 of the image's height and width."""

  channels: tuple[int, ...]  # of the stem and of the stages
  num_classes: int
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
      after its ReLU too, as in the public code.
    """
    layers = Layers(train, axis_name, self.dtype)
    norm = layers.norm("bn1")
    x = nn.relu(norm(layers.conv(self.channels[0], 1, kernel_init=uniform, name="conv1")(image)))
    feature_layers = [FeatureLayer(x, x, norm_params(norm))]
    for stage, channels in enumerate(self.channels[1:], start=1):
      for i in range(BLOCKS[stage - 1]):
        added = channels - x.shape[-1] if i == 0 else channels
        groups = 1 if stage == 1 and i == 0 else GROUPS
        layer = Block(added, 2 if i == 0 else 1, groups, name=f"layer{stage}_{i}")(x, layers)
        x = layer.feature
      feature_layers.append(layer)
    return make_outputs(feature_layers, x, self.num_classes, name="linear")


def make(*, num_classes: int, width: float = 1.0, dtype: str = "float32") -> ShuffleNetV1:
  """ShuffleNetV1 of three groups, with about `width` times the channels."""
  errors.check_positive_integer("shufflenet_v1", num_classes=num_classes)
  step = 4 * GROUPS
  channels = [
    step * max(1, round(c / step)) for c in options.scale_channels("shufflenet_v1", CHANNELS, width)
  ]
  for i in range(1, len(channels)):
    channels[i] = max(channels[i], channels[i - 1] + step)
  return ShuffleNetV1(tuple(channels), num_classes, options.parse_dtype("shufflenet_v1", dtype))
