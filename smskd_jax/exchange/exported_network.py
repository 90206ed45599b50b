"""A trained network with all that it needs to be used without the run that trained it."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax

from smskd_jax import models
from smskd_jax.config import merge
from smskd_jax.data import augment
from smskd_jax.layers import convolution
from smskd_jax.models import introspection
from smskd_jax.training import evaluate


class ExportedNetwork(NamedTuple):
  """A network, its variables and what its images are."""

  model: str  # a name of smskd_jax.models.MODELS, or custom:package.module:Class
  options: dict[str, Any]  # of the model
  variables: Any  # host arrays
  image_shape: introspection.ImageShape  # [h, w, c]
  mean: tuple[float, ...]  # per channel, where white is 1
  std: tuple[float, ...]
  class_names: tuple[str, ...]

  @property
  def network(self) -> nn.Module:
    """The module."""
    return models.factory(self.model)(num_classes=len(self.class_names), **self.options)

  def predict(self) -> Callable[[Any, jax.Array], jax.Array]:
    """The pure function (variables, images uint8 [b, h, w, c]) -> logits [b, k]."""
    normalize = functools.partial(augment.normalize, mean=self.mean, std=self.std)
    return evaluate.make_predict(self.network, normalize)

  def program(self) -> Callable[[jax.Array], jax.Array]:
    """The pure function of images alone, with the variables as constants: convolutions as other software knows them."""
    predict = self.predict()

    def program(image):
      with convolution.use_xla_convolution():
        return predict(self.variables, image)

    return program

  def description(self) -> dict[str, Any]:
    """All but the variables, for JSON."""
    return {
      "model": self.model,
      "options": self.options,
      "images": {
        "shape": list(self.image_shape),
        "layout": "[batch, height, width, channel], uint8",
        "mean": list(self.mean),
        "std": list(self.std),
      },
      "class_names": list(self.class_names),
    }


def of_description(description: dict[str, Any], variables: Any) -> ExportedNetwork:
  """The inverse of `description`."""
  images = description["images"]
  height, width, channels = images["shape"]
  return ExportedNetwork(
    description["model"],
    merge.to_plain(description["options"]),
    variables,
    (height, width, channels),
    tuple(images["mean"]),
    tuple(images["std"]),
    tuple(description["class_names"]),
  )
