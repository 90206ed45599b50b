"""The model zoo: names of networks to factories of Flax Linen modules."""

from collections.abc import Callable, Mapping
import functools
import types

from flax import linen as nn

from smskd_jax import custom
from smskd_jax.models import (
  cohort,
  mobilenet_v1,
  mobilenet_v2,
  resnet,
  resnet_imagenet,
  resnet_survey,
  shufflenet_v1,
  shufflenet_v2,
  simkd,
  transformer,
  vgg,
  wrn,
)

_FOR_SMALL_IMAGES, _FOR_LARGE_IMAGES = True, False
_SURVEY_VARIANT = True

# Every factory takes `num_classes` and the options of its family (`width`, `dtype`) by keyword, and raises ValueError
# on a bad one. The module it returns is called with `(image, train=, axis_name=)` and returns `Outputs`. Names of
# networks for small images are those of the public code that the literature's numbers come from.
NETWORKS: Mapping[str, Callable[..., nn.Module]] = types.MappingProxyType(
  {
    "resnet8": functools.partial(resnet.make, 8),
    "resnet14": functools.partial(resnet.make, 14),
    "resnet20": functools.partial(resnet.make, 20),
    "resnet26": functools.partial(resnet.make, 26),
    "resnet32": functools.partial(resnet.make, 32),
    "resnet44": functools.partial(resnet.make, 44),
    "resnet56": functools.partial(resnet.make, 56),
    "resnet110": functools.partial(resnet.make, 110),
    "resnet8x4": functools.partial(resnet.make, 8, resnet.WIDE),
    "resnet32x4": functools.partial(resnet.make, 32, resnet.WIDE),
    "ResNet18": functools.partial(resnet_imagenet.make, 18, _FOR_SMALL_IMAGES),
    "ResNet34": functools.partial(resnet_imagenet.make, 34, _FOR_SMALL_IMAGES),
    "ResNet50": functools.partial(resnet_imagenet.make, 50, _FOR_SMALL_IMAGES),
    "wrn_10_1": functools.partial(wrn.make, 10, 1),
    "wrn_16_1": functools.partial(wrn.make, 16, 1),
    "wrn_16_2": functools.partial(wrn.make, 16, 2),
    "wrn_16_4": functools.partial(wrn.make, 16, 4),
    "wrn_22_4": functools.partial(wrn.make, 22, 4),
    "wrn_28_4": functools.partial(wrn.make, 28, 4),
    "wrn_28_10": functools.partial(wrn.make, 28, 10),
    "wrn_40_1": functools.partial(wrn.make, 40, 1),
    "wrn_40_2": functools.partial(wrn.make, 40, 2),
    "wrn_40_4": functools.partial(wrn.make, 40, 4),
    "wrn": wrn.make_custom,
    "vgg8": functools.partial(vgg.make, 8),
    "vgg11": functools.partial(vgg.make, 11),
    "vgg13": functools.partial(vgg.make, 13),
    "vgg16": functools.partial(vgg.make, 16),
    "vgg19": functools.partial(vgg.make, 19),
    "MobileNetV2": functools.partial(mobilenet_v2.make, 0.5, _FOR_SMALL_IMAGES),
    "ShuffleV1": shufflenet_v1.make,
    "ShuffleV2": shufflenet_v2.make,
    "survey_resnet8": functools.partial(resnet_survey.make, 8),
    "survey_resnet10": functools.partial(resnet_imagenet.make, 10, _FOR_SMALL_IMAGES, _SURVEY_VARIANT),
    "survey_resnet14": functools.partial(resnet_survey.make, 14),
    "survey_resnet18": functools.partial(resnet_imagenet.make, 18, _FOR_SMALL_IMAGES, _SURVEY_VARIANT),
    "survey_resnet20": functools.partial(resnet_survey.make, 20),
    "survey_resnet26": functools.partial(resnet_survey.make, 26),
    "survey_resnet32": functools.partial(resnet_survey.make, 32),
    "survey_resnet34": functools.partial(resnet_imagenet.make, 34, _FOR_SMALL_IMAGES, _SURVEY_VARIANT),
    "survey_resnet44": functools.partial(resnet_survey.make, 44),
    "survey_resnet56": functools.partial(resnet_survey.make, 56),
    "imagenet_resnet18": functools.partial(resnet_imagenet.make, 18, _FOR_LARGE_IMAGES),
    "imagenet_resnet34": functools.partial(resnet_imagenet.make, 34, _FOR_LARGE_IMAGES),
    "imagenet_resnet50": functools.partial(resnet_imagenet.make, 50, _FOR_LARGE_IMAGES),
    "imagenet_mobilenet_v1": mobilenet_v1.make,
    "imagenet_mobilenet_v2": functools.partial(mobilenet_v2.make, 1.0, _FOR_LARGE_IMAGES),
    "vit_tiny": functools.partial(transformer.make, "vit_tiny", 192, 12, 3),
    "vit_small": functools.partial(transformer.make, "vit_small", 384, 12, 6),
    "mixer_tiny": functools.partial(transformer.make, "mixer_tiny", 192, 8, None),
    "mixer_small": functools.partial(transformer.make, "mixer_small", 512, 8, None),
  }
)

# Networks made of others, for the methods of the same papers.
_COMPOSITE_NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
  "cohort": functools.partial(cohort.make, NETWORKS),
  "simkd": functools.partial(simkd.make, NETWORKS),
}
MODELS: Mapping[str, Callable[..., nn.Module]] = types.MappingProxyType({**NETWORKS, **_COMPOSITE_NETWORKS})


def factory(name: str) -> Callable[..., nn.Module]:
  """Factory of a name of `MODELS`, or of a custom network `custom:package.module:Class`.

  Raises:
    KeyError: there is none of this name.
    ValueError: a user's own network cannot be had.
  """
  if not custom.is_custom(name):
    return MODELS[name]
  return custom.factory(
    name, nn.Module, required=("num_classes",), ignored=("parent", "name"), reserved=("model", "variables")
  )
