"""The model zoo: names of networks to factories of Flax Linen modules."""

from collections.abc import Callable, Mapping
import functools
import types

from flax import linen as nn

from smskd_jax.models import cohort, resnet, reuse, vgg

# Every factory takes `num_classes` and the options of its family (`width`) by keyword, and raises ValueError
# on a bad one. The module it returns is called with `(image, train=, axis_name=)` and returns `Outputs`.
_NETWORKS: Mapping[str, Callable[..., nn.Module]] = types.MappingProxyType(
  {
    "resnet8": functools.partial(resnet.make, 8),
    "resnet14": functools.partial(resnet.make, 14),
    "resnet20": functools.partial(resnet.make, 20),
    "resnet32": functools.partial(resnet.make, 32),
    "resnet44": functools.partial(resnet.make, 44),
    "resnet56": functools.partial(resnet.make, 56),
    "resnet110": functools.partial(resnet.make, 110),
    "resnet8x4": functools.partial(resnet.make, 8, resnet.WIDE),
    "resnet32x4": functools.partial(resnet.make, 32, resnet.WIDE),
    "vgg8": functools.partial(vgg.make, 8),
    "vgg11": functools.partial(vgg.make, 11),
    "vgg13": functools.partial(vgg.make, 13),
    "vgg16": functools.partial(vgg.make, 16),
    "vgg19": functools.partial(vgg.make, 19),
  }
)

# Networks made of others, for the methods of the same papers.
_OF_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
  "cohort": functools.partial(cohort.make, _NETWORKS),
  "simkd": functools.partial(reuse.make, _NETWORKS),
}
MODELS: Mapping[str, Callable[..., nn.Module]] = types.MappingProxyType({**_NETWORKS, **_OF_NETWORKS})
