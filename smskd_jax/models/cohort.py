"""Networks that train side by side, as one: the cohort of deep mutual learning.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, https://arxiv.org/abs/1706.00384

Each member has its own weights; all members have the same images. The outputs of the first member are those of the
cohort, which are evaluated and teach in later stages. The outputs of the others are in `Outputs.peer_outputs`, for the
method `dml`. Differences: the paper evaluates every member, and also all of them as an ensemble.
"""

from collections.abc import Callable, Mapping

from flax import linen as nn
import jax

from smskd_jax import errors
from smskd_jax.types import Outputs


class Cohort(nn.Module):
  """Several networks on the same images."""

  members: tuple[nn.Module, ...]

  @nn.compact
  def __call__(self, image: jax.Array, *, train: bool = False, axis_name: str | None = None) -> Outputs:
    """Outputs of the first member, with those of the others as `peer_outputs`.

    Args:
      image: [b, h, w, c], as all members take it.
      train: True if batch norm uses and updates the statistics of the batch (collection `batch_stats`).
      axis_name: the axis of devices that the statistics of the batch span.
    """
    first, *others = (member(image, train=train, axis_name=axis_name) for member in self.members)
    return first._replace(peer_outputs=tuple(others))


def make(
  models: Mapping[str, Callable[..., nn.Module]],
  /,
  *,
  num_classes: int,
  first: str = "resnet20",
  width: float = 1.0,
  peer: str = "resnet20",
  peer_width: float = 1.0,
  num_peers: int = 1,
  dtype: str = "float32",
) -> Cohort:
  """A network and its peers.

  Args:
    models: names to factories, of which `first` and `peer` are two.
    num_classes: of all members.
    first: the network that is evaluated.
    width: its width.
    peer: the networks that train beside it.
    peer_width: their width.
    num_peers: number of these networks.
    dtype: computation type of all members.
  """
  errors.check_choice("cohort", models, first=first, peer=peer)
  errors.check_positive_integer("cohort", num_peers=num_peers)
  evaluated = models[first](num_classes=num_classes, width=width, dtype=dtype)
  try:
    others = tuple(
      models[peer](num_classes=num_classes, width=peer_width, dtype=dtype) for _ in range(num_peers)
    )
  except ValueError as error:
    raise ValueError(f"cohort: peer: {error}") from error
  return Cohort((evaluated, *others))
