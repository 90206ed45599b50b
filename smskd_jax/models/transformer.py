"""Networks of tokens: a vision transformer and an MLP-Mixer, with maps of tokens.

Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
https://arxiv.org/abs/2010.11929
Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", NeurIPS 2021, https://arxiv.org/abs/2105.01601

The transformer is that of "Better plain ViT baselines for ImageNet-1k" (Beyer, Zhai, Kolesnikov, 2022,
https://arxiv.org/abs/2205.01580): positions are fixed sines and cosines, and the mean over tokens is classified, not a
token of its own, so that images of any size fit, and tokens always form a map. There is no dropout. Names of submodules
are those of timm's networks, which have another kind of positions by default.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from smskd_jax import errors
from smskd_jax.layers.basic import normal
from smskd_jax.layers.transformer import Block
from smskd_jax.models import options
from smskd_jax.models.outputs import FeatureLayer, make_outputs
from smskd_jax.types import Outputs

NUM_FEATURE_LAYERS = 4  # beside that of the embedding, after each quarter of the blocks


def sinusoidal_positions(height: int, width: int, channels: int) -> np.ndarray:
  """Sines and cosines of row and column, [1, h, w, c]; c is divisible by 4."""
  frequencies = 1e4 ** -np.linspace(0, 1, channels // 4)
  row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
  angles = [place[..., None] * frequencies for place in (column, row)]
  parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
  return np.concatenate(parts, axis=-1)[None]


class PatchNetwork(nn.Module):
  """A linear embedding of patches, and blocks that keep its size."""

  channels: int
  num_blocks: int
  num_heads: int | None  # None: a mixer
  patch_size: int  # height and width
  num_classes: int
  dtype: Any = None  # computation type; None: that of inputs and parameters

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Computes the outputs for a batch of images.

    Args:
      image: [b, h, w, channels]; h and w are multiples of the patch. A mixer's weights depend on both.
      train: changes nothing: there is neither batch norm nor dropout.
      axis_name: changes nothing either.

    Returns:
      Outputs with five feature layers [b, h / patch, w / patch, d]: the embedding and the end of each quarter of the
      blocks. No activation follows them, so that preactivations are the feature layers. The final map is the last after
      layer norm.

    Raises:
      ValueError: the patches do not fit.
    """
    del train, axis_name
    b, height, width, _ = image.shape
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(
        f"images of {height}x{width} do not divide into patches of {self.patch_size}x{self.patch_size}"
      )
    size, stem = (
      (self.patch_size, self.patch_size),
      "patch__embed_proj" if self.num_heads is not None else "stem_proj",
    )
    fan_in = self.patch_size**2 * image.shape[-1]
    embedding = nn.Conv(
      self.channels, size, size, "VALID", kernel_init=normal(fan_in**-0.5), dtype=self.dtype, name=stem
    )
    x = embedding(image)
    if self.num_heads is not None:
      x = x + jnp.asarray(sinusoidal_positions(*x.shape[1:]), x.dtype)
    shape = x.shape
    feature_layers, x = [FeatureLayer(x, x)], x.reshape(b, -1, self.channels)
    ends = {round(self.num_blocks * i / NUM_FEATURE_LAYERS) for i in range(1, NUM_FEATURE_LAYERS + 1)}
    for i in range(self.num_blocks):
      x = Block(self.num_heads, self.dtype, name=f"blocks_{i}")(x)
      if i + 1 in ends:
        feature_layers.append(FeatureLayer(x.reshape(shape), x.reshape(shape)))
    x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
    return make_outputs(
      feature_layers, x.reshape(shape), self.num_classes, name="head", kernel_init=normal(0.01)
    )


def make(
  name: str,
  channels: int,
  num_blocks: int,
  num_heads: int | None,
  /,
  *,
  num_classes: int,
  width: float = 1.0,
  patch_size: int = 4,
  dtype: str = "float32",
) -> PatchNetwork:
  """Network of `num_blocks` blocks, `width` times `channels`, and square patches.

  Patches of 4 are for images of 32x32, of 16 for 224x224. Channels are rounded to multiples that heads and positions
  need.
  """
  errors.check_positive_integer(name, num_classes=num_classes)
  errors.check_positive_integer(name, patch_size=patch_size)
  (channels,) = options.scale_channels(name, (channels,), width)
  step = 4 * (num_heads or 1)
  channels = step * max(1, round(channels / step))
  return PatchNetwork(
    channels, num_blocks, num_heads, patch_size, num_classes, options.parse_dtype(name, dtype)
  )
