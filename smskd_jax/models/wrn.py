"""Wide residual networks for small images.

Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146

As the knowledge distillation literature uses them since "Contrastive Representation Distillation" (Tian, Krishnan,
Isola, ICLR 2020, https://arxiv.org/abs/1910.10699): without dropout.
"""

from typing import Any

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.layers.basic import Layers
from smskd_jax.layers.batch_norm import BatchNorm
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Norm, Outputs

CHANNELS = (16, 16, 32, 64)  # of the stem, which is never widened, and of the three stages


class Block(nn.Module):
  """Batch norm and ReLU before each of two 3x3 convolutions, around a shortcut."""

  channels: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> tuple[jax.Array, jax.Array, BatchNorm]:
    """(sum of both branches, x after the first batch norm, this batch norm)."""
    first = layers.norm("bn1")
    normalized = first(x)
    active = nn.relu(normalized)
    y = layers.conv(self.channels, 3, stride=self.stride, name="conv1")(active)
    y = nn.relu(layers.norm("bn2")(y))
    y = layers.conv(self.channels, 3, name="conv2")(y)
    if x.shape[-1] != self.channels or self.stride != 1:
      x = layers.conv(self.channels, 1, stride=self.stride, name="convShortcut")(active)
    return x + y, normalized, first


class WideResNet(nn.Module):
  """Convolution and three block groups, of 1, 1, 1/2 and 1/4 of the image's size."""

  blocks: int  # in each stage; depth = 6 * blocks + 4
  channels: tuple[int, ...]  # of the stem and of the three stages
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
      Outputs with four feature layers: the stem's and the ends of the block groups, which are sums that no activation
      follows. Their preactivations are the outputs of the next batch norm, as in the public code; the stem's is the
      feature layer itself.
    """
    layers = Layers(train, axis_name, self.dtype)
    x = layers.conv(self.channels[0], 3, name="conv1")(image)
    features, normalized = [x], [x]
    norms: list[Norm | None] = [None]
    for stage, channels in enumerate(self.channels[1:], start=1):
      for i in range(self.blocks):
        block = Block(channels, 2 if stage > 1 and i == 0 else 1, name=f"block{stage}_layer_{i}")
        x, before, first = block(x, layers)
        if stage > 1 and i == 0:
          normalized.append(before)
          norms.append(norm_params(first))
      features.append(x)
    last = layers.norm("bn1")
    normalized.append(last(x))
    norms.append(norm_params(last))
    feature_layers = [FeatureLayer(*layer) for layer in zip(features, normalized, norms, strict=True)]
    return make_outputs(feature_layers, nn.relu(normalized[-1]), self.num_classes, name="fc")


def make(
  depth: int, factor: int, /, *, num_classes: int, width: float = 1.0, dtype: str = "float32"
) -> WideResNet:
  """WRN of `depth` = 6n + 4 layers, widened by `factor`, with `width` times the channels."""
  if depth < 10 or depth % 6 != 4:
    raise ValueError(f"wrn: depth must be 6n + 4 with n >= 1, got {depth}")
  errors.check_positive_integer("wrn", num_classes=num_classes)
  stem, *stages = CHANNELS
  channels = options.scale_channels("wrn", (stem, *(factor * c for c in stages)), width)
  return WideResNet((depth - 4) // 6, channels, num_classes, options.parse_dtype("wrn", dtype))


def make_custom(
  *, num_classes: int, depth: int = 28, factor: int = 4, width: float = 1.0, dtype: str = "float32"
) -> WideResNet:
  """As `make`, with depth and factor as options of a config."""
  errors.check_positive_integer("wrn", depth=depth)
  errors.check_positive_integer("wrn", factor=factor)
  return make(depth, factor, num_classes=num_classes, width=width, dtype=dtype)
