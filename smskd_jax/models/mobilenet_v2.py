"""MobileNetV2: inverted residual blocks, for small images and for large ones.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
https://arxiv.org/abs/1801.04381

For small images it is the network of half width of "Contrastive Representation Distillation" (Tian, Krishnan, Isola,
ICLR 2020, https://arxiv.org/abs/1910.10699), which later comparisons have kept: ReLU in the place of ReLU6, the second
row of stride 1, and the first expands too, by 1. For large ones it is torchvision's, with channels rounded to multiples
of 8; its dropout of 0.2 before the classifier is left out.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, normal
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs


class BlockGroup(NamedTuple):
  """One line of table 2 of the paper: blocks of a kind."""

  expansion: int
  channels: int
  num_blocks: int
  stride: int  # of the first


STEM, LAST = 32, 1280
_FEATURE_GROUPS = (
  1,
  2,
  4,
  6,
)  # rows that are followed by a feature layer: the last before the map shrinks, and the last of all


def _block_groups(small_images: bool) -> tuple[BlockGroup, ...]:
  return (
    BlockGroup(1, 16, 1, 1),
    BlockGroup(6, 24, 2, 1 if small_images else 2),
    BlockGroup(6, 32, 3, 2),
    BlockGroup(6, 64, 4, 2),
    BlockGroup(6, 96, 3, 1),
    BlockGroup(6, 160, 3, 2),
    BlockGroup(6, 320, 1, 1),
  )


class InvertedResidual(nn.Module):
  """Inverted residual: 1x1 convolution to more channels, depthwise 3x3, and 1x1 back."""

  expansion: int
  channels: int
  stride: int
  small_images: bool

  @nn.compact
  def __call__(self, x: jax.Array, layers: Layers) -> FeatureLayer:
    """[b, h / stride, w / stride, channels]; no activation follows the sum."""
    activation = nn.relu if self.small_images else nn.relu6
    expands = self.small_images or self.expansion > 1
    between = x.shape[-1] * self.expansion
    # PyTorch's numbers: of layers in a row, or of groups of convolution, batch norm and activation.
    names: tuple[tuple[Any, ...], ...]
    names = ((0, 1), (3, 4), (6, 7)) if self.small_images else (("0_0", "0_1"), ("1_0", "1_1"), (2, 3))
    if not expands:
      names = ((), ("0_0", "0_1"), (1, 2))
    conv, norm = (lambda i, j=j: f"conv_{names[i][j]}" for j in (0, 1))
    y = x
    if expands:
      y = activation(layers.norm(norm(0))(layers.conv(between, 1, name=conv(0))(y)))
    y = layers.conv(between, 3, stride=self.stride, groups=between, name=conv(1))(y)
    y = activation(layers.norm(norm(1))(y))
    last = layers.norm(norm(2))
    y = last(layers.conv(self.channels, 1, name=conv(2))(y))
    if self.stride == 1 and x.shape[-1] == self.channels:
      y = x + y
    return FeatureLayer(y, y, norm_params(last))


class MobileNetV2(nn.Module):
  """A stem of stride 2, seven rows of blocks, and a 1x1 convolution before the classifier."""

  channels: tuple[int, ...]  # of the stem, of the rows, and before the classifier
  num_classes: int
  small_images: bool
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels], of any size and number of channels.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with five feature layers, the stem's end and those of rows 2, 3, 5 and 7, which are sums that no
      activation follows: there the preactivation is the feature layer itself. The public code has none.
    """
    layers = Layers(train, axis_name, self.dtype)
    small, activation = self.small_images, nn.relu if self.small_images else nn.relu6
    stem, *group_channels, last = self.channels
    prefix = "conv1" if small else "features_0"
    norm = layers.norm(f"{prefix}_1")
    preactivation = norm(layers.conv(stem, 3, stride=2, name=f"{prefix}_0")(image))
    x = activation(preactivation)
    feature_layers, count = [FeatureLayer(x, preactivation, norm_params(norm))], 0
    for i, (row, channels) in enumerate(zip(_block_groups(small), group_channels, strict=True)):
      for j in range(row.num_blocks):
        count += 1
        name = f"blocks_{i}_{j}" if small else f"features_{count}"
        block = InvertedResidual(row.expansion, channels, row.stride if j == 0 else 1, small, name=name)
        layer = block(x, layers)
        x = layer.feature
      if i in _FEATURE_GROUPS:
        feature_layers.append(layer)
    prefix = "conv2" if small else f"features_{count + 1}"
    x = layers.conv(last, 1, name=f"{prefix}_0")(x)
    x = activation(layers.norm(f"{prefix}_1")(x))
    name = "classifier_0" if small else "classifier_1"
    return make_outputs(feature_layers, x, self.num_classes, name=name, kernel_init=normal(0.01))


def _round_to_multiple_of_8(channels: float) -> int:
  """The nearest multiple of 8 that is not more than a tenth smaller, as torchvision rounds."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * channels else rounded


def make(
  factor: float, small_images: bool, /, *, num_classes: int, width: float = 1.0, dtype: str = "float32"
) -> MobileNetV2:
  """MobileNetV2 with `factor` times `width` times the paper's channels."""
  errors.check_positive_integer("mobilenet_v2", num_classes=num_classes)
  options.scale_channels("mobilenet_v2", (), width)  # checks width
  factor *= width
  to_channels = (lambda c: max(1, int(c))) if small_images else _round_to_multiple_of_8
  channels = [to_channels(factor * c) for c in (STEM, *(row.channels for row in _block_groups(small_images)))]
  last = to_channels(max(1.0, factor) * LAST)
  return MobileNetV2((*channels, last), num_classes, small_images, options.parse_dtype("mobilenet_v2", dtype))
