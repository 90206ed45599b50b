"""VGG networks with batch norm for small images, as in the literature on distillation.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556

Differences: batch norm after every convolution, global average pooling and one linear layer instead of three
(without dropout), and vgg8. They are those of "Contrastive Representation Distillation" (Tian, Krishnan,
Isola, ICLR 2020, https://arxiv.org/abs/1910.10699), which all later comparisons on CIFAR-100 have kept.
"""

from typing import Any

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.layers.basic import Layers, normal
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs, norm_params
from smskd_jax.types import Outputs

CHANNELS = (64, 128, 256, 512, 512)
# Convolutions in each of the five blocks.
CONVOLUTIONS = {
  8: (1, 1, 1, 1, 1),
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
  """Five blocks of 3x3 convolutions; the map is halved between the first four."""

  convolutions: tuple[int, ...]  # in each block
  channels: tuple[int, ...]  # of each block
  num_classes: int
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels], h and w at least 8. The last two blocks work on maps of one size, 1/8 of the
        image's (rounded down); for h = 64 alone, as in the public code, the last works on 1/16.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.

    Returns:
      Outputs with five feature layers, the blocks' ends before their pooling. The first preactivation is taken after
      its ReLU too, as in the public code: methods that want preactivations use the later ones.
    """
    if min(image.shape[1:3]) < 8:
      raise ValueError(f"vgg: images must be at least 8x8, got {image.shape[1]}x{image.shape[2]}")
    pooled_blocks = (0, 1, 2, 3) if image.shape[1] == 64 else (0, 1, 2)
    layers = Layers(train, axis_name, self.dtype)
    x, feature_layers = image, []
    for block, channels in enumerate(self.channels):
      for i in range(self.convolutions[block]):
        # PyTorch counts convolution, batch norm and ReLU: the i-th convolution is layer 3i of its block.
        x = layers.conv(channels, 3, use_bias=True, name=f"block{block}_{3 * i}")(x)
        norm = layers.norm(f"block{block}_{3 * i + 1}")
        preactivation = norm(x)
        x = nn.relu(preactivation)
      feature_layers.append(FeatureLayer(x, preactivation if block > 0 else x, norm_params(norm)))
      if block in pooled_blocks:
        x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
    return make_outputs(feature_layers, x, self.num_classes, name="classifier", kernel_init=normal(0.01))


def make(depth: int, /, *, num_classes: int, width: float = 1.0, dtype: str = "float32") -> VGG:
  """The VGG of `depth` layers, with `width` times the channels."""
  errors.check_choice("vgg", CONVOLUTIONS, depth=depth)
  errors.check_positive_integer("vgg", num_classes=num_classes)
  channels = options.scale_channels("vgg", CHANNELS, width)
  return VGG(CONVOLUTIONS[depth], channels, num_classes, options.parse_dtype("vgg", dtype))
