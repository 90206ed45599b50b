"""A network of one convolution, for tests that have to compile whole steps of several networks."""

from flax import linen as nn

from smskd_jax.layers import basic
from smskd_jax.state import Head, Norm, Outputs


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
    return Outputs(logits, pooled, (x,), (before,), unpooled=x, head=head, norms=(last,))


def make(*, num_classes, width=1.0, dtype="float32"):
  assert dtype == "float32"
  return Tiny(round(16 * width), num_classes)


MODELS = {"tiny": make}
