"""Networks whose inputs have another normalisation than the data.

Views of a batch are normalised by the data's mean and deviation, once for all networks. A network that was trained on
images of another normalisation undoes it: both are affine maps of the same picture.
"""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax.types import Outputs


class Renormalized(nn.Module):
  """Applies the affine map from the data's to the network's normalisation, then the network."""

  network: nn.Module
  mean: tuple[float, ...]  # of the network's images, one for each channel, where white is 1
  std: tuple[float, ...]
  data_mean: tuple[float, ...]  # by which the images that it is called with are normalised
  data_std: tuple[float, ...]

  def setup(self) -> None:
    """Lets the network's variables have the names that they have without this module."""
    nn.share_scope(self, self.network)

  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Outputs for images [b, h, w, c] of the data's normalisation.

    Convex mixtures of images (mixup, CutMix) are mixtures in both normalisations. Noise, which is drawn normalised by
    the data, is the same picture for all networks: it is not of mean 0 and deviation 1 in this one's normalisation.
    """
    of = zip(self.mean, self.std, self.data_mean, self.data_std, strict=True)
    maps = [(data_std / std, (data_mean - mean) / std) for mean, std, data_mean, data_std in of]
    scale, offset = (jnp.asarray(x, image.dtype).reshape(1, 1, 1, -1) for x in zip(*maps, strict=True))
    return self.network(image * scale + offset, train=train, axis_name=axis_name)


def make(
  network: nn.Module,
  network_stats: tuple[Sequence[float], Sequence[float]] | None,
  data_stats: tuple[Sequence[float], Sequence[float]],
) -> nn.Module:
  """The network, to be called with images of the data's normalisation.

  Args:
    network: the network.
    network_stats: mean and deviation of the network's own images; None or the data's: returns the network unchanged.
    data_stats: mean and deviation by which the data is normalised.
  """
  if network_stats is None or tuple(map(tuple, network_stats)) == tuple(map(tuple, data_stats)):
    return network
  return Renormalized(network, *map(tuple, network_stats), *map(tuple, data_stats))


def channel_stats(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
  """Mean and deviation of a network's images, where they are not the data's."""
  return (network.mean, network.std) if isinstance(network, Renormalized) else None
