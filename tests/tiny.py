"""Networks of one and of three convolutions, for tests that compile whole steps."""

from flax import linen as nn

from smskd_jax.layers import basic
from smskd_jax.types import Head, Norm, Outputs


class Tiny(nn.Module):
  """A convolution of stride 2, batch norm, ReLU and a classifier."""

  channels: int = 4
  num_classes: int = 10

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    norm = basic.norm(train=train, axis_name=axis_name, name="bn")
    preactivation = norm(basic.conv(self.channels, 3, stride=2, name="conv")(image))
    x = nn.relu(preactivation)
    embedding = x.mean((1, 2))
    classifier = basic.linear(self.num_classes, self.channels, name="fc")
    logits = classifier(embedding)
    head, norms = Head(**classifier.variables["params"]), (Norm(**norm.variables["params"]),)
    return Outputs(logits, embedding, (x,), (preactivation,), final_map=x, head=head, norms=norms)


def make(*, num_classes, width=1.0, dtype="float32"):
  assert dtype == "float32"
  return Tiny(round(16 * width), num_classes)


class Small(nn.Module):
  """Three convolutions with batch norm and ReLU; two of them halve the map."""

  num_classes: int
  width: float = 1.0

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    x, preactivations, features, norms = image, [], [], []
    for i in range(3):
      norm = basic.norm(train=train, axis_name=axis_name, name=f"bn{i}")
      x = basic.conv(round(16 * self.width) << i, 3, stride=2 if i else 1, name=f"conv{i}")(x)
      preactivations.append(norm(x))
      x = nn.relu(preactivations[-1])
      features.append(x)
      norms.append(Norm(**norm.variables["params"]))
    embedding = x.mean((1, 2))
    classifier = basic.linear(self.num_classes, embedding.shape[-1], name="fc")
    logits = classifier(embedding)
    head = Head(**classifier.variables["params"])
    return Outputs(
      logits,
      embedding,
      tuple(features),
      tuple(preactivations),
      final_map=x,
      head=head,
      norms=tuple(norms),
    )


MODELS = {"tiny": make, "small": Small}
SMALL = "custom:tiny:Small"  # its name in configs, where the folder of the tests can be imported from
