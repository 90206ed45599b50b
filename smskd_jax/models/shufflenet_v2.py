"""ShuffleNetV2 for small images, as the knowledge distillation literature uses it.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018,
https://arxiv.org/abs/1807.11164

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

CHANNELS = (24, 116, 232, 464, 1024)  # of the stem, of the stages, and before the classifier
BLOCKS = (3, 7, 3)  # after the first of each stage


class DownBlock(nn.Module):
  """The first block of a stage: two branches of stride 2, side by side."""

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> jax.Array:
    """[b, h / 2, w / 2, channels]."""
    half, inputs = self.channels // 2, x.shape[-1]
    depthwise: dict[str, Any] = {"kernel_size": 3, "stride": 2, "kernel_init": uniform}
    left = layers.norm("bn1")(layers.conv(inputs, groups=inputs, name="conv1", **depthwise)(x))
    left = nn.relu(layers.norm("bn2")(layers.conv(half, 1, kernel_init=uniform, name="conv2")(left)))
    right = nn.relu(layers.norm("bn3")(layers.conv(half, 1, kernel_init=uniform, name="conv3")(x)))
    right = layers.norm("bn4")(layers.conv(half, groups=half, name="conv4", **depthwise)(right))
    right = nn.relu(layers.norm("bn5")(layers.conv(half, 1, kernel_init=uniform, name="conv5")(right)))
    return shuffle_channels(jnp.concatenate([left, right], axis=-1), 2)


class Block(nn.Module):
  """Three convolutions on one half of the channels; the other half stays."""

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """[b, h, w, channels] after its last ReLU and its shuffle, and before both."""
    kept, y = jnp.split(x, 2, axis=-1)
    half = y.shape[-1]
    y = nn.relu(layers.norm("bn1")(layers.conv(half, 1, kernel_init=uniform, name="conv1")(y)))
    y = layers.norm("bn2")(layers.conv(half, 3, groups=half, kernel_init=uniform, name="conv2")(y))
    y = layers.norm("bn3")(layers.conv(half, 1, kernel_init=uniform, name="conv3")(y))

    def beside(half):
      return jnp.concatenate([kept, half], axis=-1)

    return FeatureLayer(shuffle_channels(beside(nn.relu(y)), 2), beside(y))


class ShuffleNetV2(nn.Module):
  """Stem, three block groups down to 1/8 of the image's size, and a 1x1 convolution."""

  channels: tuple[int, ...]  # of the stem, of the stages, and before the classifier
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
      Outputs with four feature layers: the stem's and the ends of the block groups. As in the public code the stem's
      preactivation is taken after its ReLU too, and those of the block groups before the last shuffle: their channels
      are in another order than the feature layers', and half of them, which the last block leaves alone, are after a
      ReLU.
    """
    layers = Layers(train, axis_name, self.dtype)
    stem, *stages, last = self.channels
    norm = layers.norm("bn1")
    x = nn.relu(norm(layers.conv(stem, 1, kernel_init=uniform, name="conv1")(image)))
    feature_layers = [FeatureLayer(x, x, norm_params(norm))]
    for stage, (channels, blocks) in enumerate(zip(stages, BLOCKS, strict=True), start=1):
      x = DownBlock(channels, name=f"layer{stage}_0")(x, layers)
      for i in range(1, blocks + 1):
        layer = Block(name=f"layer{stage}_{i}")(x, layers)
        x = layer.feature
      feature_layers.append(layer)
    x = layers.conv(last, 1, kernel_init=uniform, name="conv2")(x)
    x = nn.relu(layers.norm("bn2")(x))
    return make_outputs(feature_layers, x, self.num_classes, name="linear")


def make(*, num_classes: int, width: float = 1.0, dtype: str = "float32") -> ShuffleNetV2:
  """ShuffleNetV2 of factor 1, with `width` times the channels, even in the stages."""
  errors.check_positive_integer("shufflenet_v2", num_classes=num_classes)
  stem, *stages, last = options.scale_channels("shufflenet_v2", CHANNELS, width)
  even = (max(2, 2 * round(c / 2)) for c in stages)
  return ShuffleNetV2((stem, *even, last), num_classes, options.parse_dtype("shufflenet_v2", dtype))
