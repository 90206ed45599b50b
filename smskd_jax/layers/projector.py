"""Projector of SimKD, between a student and the classifier of its teacher.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022,
https://arxiv.org/abs/2203.14001
"""

from flax import linen as nn
import jax

from smskd_jax.layers import basic


class Projector(nn.Module):
  """Bottleneck of 1x1, 3x3 and 1x1 convolutions, each with batch norm and ReLU.

  Stride, groups and initialisation are those of the authors' code: 1, 1 and PyTorch's.
  """

  channels: int  # of the teacher's map
  factor: float = 2.0  # how many times fewer there are in between
  train: bool = True  # as of `BatchNorm`

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """The map [b, h, w, channels]; in training it updates the collection `batch_stats`."""
    between = max(1, int(self.channels / self.factor))
    for i, (channels, size) in enumerate(((between, 1), (between, 3), (self.channels, 1)), start=1):
      x = basic.conv(channels, size, kernel_init=basic.uniform, name=f"conv{i}")(x)
      x = nn.relu(basic.norm(train=self.train, axis_name=axis_name, name=f"bn{i}")(x))
    return x
