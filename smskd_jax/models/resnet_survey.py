"""The small ResNets of the survey "The State of Knowledge Distillation for Classification".

Ruffy, Chahal, https://arxiv.org/abs/1912.10850; the public code is https://github.com/karanchahal/distiller.

They share their names with He's networks for CIFAR and differ from them: the stem has 64 channels, the blocks of a
stage add up without a ReLU between them (one follows the last), and the last map is averaged in windows of 4x4 and
flattened. An 8x8 map thus becomes 256 numbers and not 64, which the classifier reads in PyTorch's order: channel, row,
column.
ResNet8 has 89,322 parameters for ten classes.

The survey's larger ResNets are in `resnet_imagenet.py`; its wide networks are those of `wrn.py`. The ResNets' weights
start as PyTorch's layers do.
"""

from typing import Any

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, uniform
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

CHANNELS = (64, 16, 32, 64)  # of the stem and of the stages
_POOL_SIZE = 4


class Block(nn.Module):
  """Two 3x3 convolutions around a shortcut."""

  channels: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """The sum of both branches [b, h / stride, w / stride, channels], after a ReLU and before."""
    conv = {"kernel_init": uniform}
    y = layers.conv(self.channels, 3, stride=self.stride, name="conv1", **conv)(x)
    y = nn.relu(layers.norm("bn1")(y))
    last = layers.norm("bn2")
    y = last(layers.conv(self.channels, 3, name="conv2", **conv)(y))
    if self.stride != 1 or x.shape[-1] != self.channels:
      x = layers.conv(self.channels, 1, stride=self.stride, name="shortcut_0", **conv)(x)
      x = layers.norm("shortcut_1")(x)
    return FeatureLayer(nn.relu(y + x), y + x, norm_params(last))


def _windows(x: jax.Array) -> jax.Array:
  """Stacks the pooling windows of a map [b, h, w, c] as channels."""
  b, h, w, c = x.shape
  size = min(_POOL_SIZE, h, w)
  rows, columns = h // size, w // size  # a remainder is cut off, as in PyTorch's pooling
  x = x[:, : rows * size, : columns * size].reshape(b, rows, size, columns, size, c)
  return x.transpose(0, 2, 4, 5, 1, 3).reshape(b, size, size, c * rows * columns)


class SurveyResNet(nn.Module):
  """A stem and three stages of blocks, of 1, 1, 1/2 and 1/4 of the image's height and width."""

  blocks: int  # in each stage; depth = 6 * blocks + 2
  channels: tuple[int, ...]  # of the stem and of the three stages
  num_classes: int
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels]; the number of weights depends on h and w.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with four feature layers: the stem's and the ends of the block groups; the public code has no feature
      layer at the stem. The final map is the last one with each window's places as one place and the windows as
      channels: its mean is the embedding.
    """
    layers = Layers(train, axis_name, self.dtype)
    norm = layers.norm("bn1")
    preactivation = norm(layers.conv(self.channels[0], 3, kernel_init=uniform, name="conv1")(image))
    x = nn.relu(preactivation)
    feature_layers = [FeatureLayer(x, preactivation, norm_params(norm))]
    for stage, channels in enumerate(self.channels[1:], start=1):
      for i in range(self.blocks):
        block = Block(channels, 2 if stage > 1 and i == 0 else 1, name=f"layer{stage}_{i}")
        layer = block(x, layers)
        x = layer.preactivation
      x = layer.feature
      feature_layers.append(layer)
    return make_outputs(feature_layers, _windows(x), self.num_classes, name="linear")


def make(depth: int, /, *, num_classes: int, width: float = 1.0, dtype: str = "float32") -> SurveyResNet:
  """A ResNet of `depth` = 6n + 2 layers, with `width` times the channels."""
  if depth < 8 or depth % 6 != 2:
    raise ValueError(f"survey_resnet: depth must be 6n + 2 with n >= 1, got {depth}")
  errors.check_positive_integer("survey_resnet", num_classes=num_classes)
  channels = options.scale_channels("survey_resnet", CHANNELS, width)
  return SurveyResNet((depth - 2) // 6, channels, num_classes, options.parse_dtype("survey_resnet", dtype))
