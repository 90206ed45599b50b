"""MobileNetV1: convolutions of one channel each, followed by 1x1 convolutions.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861

Feature layers and names of submodules are those of the public code of "Decoupled Knowledge Distillation" (Zhao et al.,
CVPR 2022, https://arxiv.org/abs/2203.08679), the student of the literature's ResNet50 on ImageNet. Weights start as
PyTorch's.
"""

from typing import Any

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, uniform
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

# (channels, stride) of each block after the stem, whose 32 channels come first.
STEM = 32
BLOCKS = (
  (64, 1),
  (128, 2),
  (128, 1),
  (256, 2),
  (256, 1),
  (512, 2),
  *((512, 1),) * 5,
  (1024, 2),
  (1024, 1),
)
_FEATURE_BLOCKS = (3, 5, 11, 13)  # blocks, counted from 1


class MobileNetV1(nn.Module):
  """Stem of stride 2 and thirteen blocks; the last map is 1/32 of the image's size."""

  channels: tuple[int, ...]  # of the stem and of the blocks
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
      Outputs with four feature layers, of 1/4, 1/8, 1/16 and 1/32 of the image's height and width.
    """
    layers = Layers(train, axis_name, self.dtype)
    x = layers.conv(self.channels[0], 3, stride=2, kernel_init=uniform, name="model_0_0")(image)
    x = nn.relu(layers.norm("model_0_1")(x))
    feature_layers = []
    for i, (channels, (_, stride)) in enumerate(zip(self.channels[1:], BLOCKS, strict=True), start=1):
      groups = x.shape[-1]
      depthwise = {"stride": stride, "groups": groups, "kernel_init": uniform}
      x = layers.conv(groups, 3, name=f"model_{i}_0", **depthwise)(x)
      x = nn.relu(layers.norm(f"model_{i}_1")(x))
      x = layers.conv(channels, 1, kernel_init=uniform, name=f"model_{i}_3")(x)
      norm = layers.norm(f"model_{i}_4")
      preactivation = norm(x)
      x = nn.relu(preactivation)
      if i in _FEATURE_BLOCKS:
        feature_layers.append(FeatureLayer(x, preactivation, norm_params(norm)))
    return make_outputs(feature_layers, x, self.num_classes, name="fc")


def make(*, num_classes: int, width: float = 1.0, dtype: str = "float32") -> MobileNetV1:
  """MobileNetV1 with `width` times the channels."""
  errors.check_positive_integer("mobilenet_v1", num_classes=num_classes)
  channels = options.scale_channels("mobilenet_v1", (STEM, *(c for c, _ in BLOCKS)), width)
  return MobileNetV1(channels, num_classes, options.parse_dtype("mobilenet_v1", dtype))
