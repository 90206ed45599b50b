"""Networks of one and of three convolutions, for tests that have to compile whole steps of several networks."""

from flax import linen as nn

from smskd_jax.layers import basic
from smskd_jax.types import Head, Norm, Outputs


class Tiny(nn.Module):
  """A convolution of stride 2, batch norm, ReLU and a classifier."""

  channels: int
  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    norm = basic.norm(train=train, axis_name=axis_name, name="bn")
    before = norm(basic.conv(self.channels, 3, stride=2, name="conv")(image))
    x = nn.relu(before)
    pooled = x.mean((1, 2))
    classifier = basic.linear(self.num_classes, self.channels, name="fc")
    logits = classifier(pooled)
    head, last = Head(**classifier.variables["params"]), Norm(**norm.variables["params"])
    return Outputs(logits, pooled, (x,), (before,), final_map=x, head=head, norms=(last,))


def make(*, num_classes, width=1.0, dtype="float32"):
  assert dtype == "float32"
  return Tiny(round(16 * width), num_classes)


class Small(nn.Module):
  """Three convolutions, each with batch norm and ReLU and a tap: the last two halve the map and double the channels."""

  num_classes: int
  width: float = 1.0

  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    x, befores, afters, norms = image, [], [], []
    for i in range(3):
      norm = basic.norm(train=train, axis_name=axis_name, name=f"bn{i}")
      x = basic.conv(round(16 * self.width) << i, 3, stride=2 if i else 1, name=f"conv{i}")(x)
      befores.append(norm(x))
      x = nn.relu(befores[-1])
      afters.append(x)
      norms.append(Norm(**norm.variables["params"]))
    pooled = x.mean((1, 2))
    classifier = basic.linear(self.num_classes, pooled.shape[-1], name="fc")
    logits = classifier(pooled)
    head = Head(**classifier.variables["params"])
    return Outputs(logits, pooled, tuple(afters), tuple(befores), final_map=x, head=head, norms=tuple(norms))


MODELS = {"tiny": make, "small": Small}
SMALL = "custom:tiny:Small"  # how configs name it, where the folder of the tests can be imported from
