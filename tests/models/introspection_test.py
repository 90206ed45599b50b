"""Tests of models/introspection.py: what is known of networks without computing them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from smskd_jax.models import MODELS, introspection
from smskd_jax.types import Outputs


class Linear(nn.Module):
  @nn.compact
  def __call__(self, image, *, train=False, axis_name=None):
    pooled = image.reshape(len(image), -1)
    return Outputs(nn.Dense(10, name="head")(pooled), pooled, (), ())


def test_sizes_by_hand():
  shape = (4, 4, 3)
  assert introspection.num_parameters(Linear(), shape) == 10 * 48 + 10
  assert introspection.num_bytes(Linear(), shape) == 4 * (10 * 48 + 10)
  assert introspection.forward_flops(Linear(), shape) == pytest.approx(2 * 10 * 48 + 10, rel=0.02)


def test_operations_are_counted_where_jax_analyzes_compiled_programs_only(monkeypatch):
  monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)  # as on GPUs and TPUs
  flops = introspection.forward_flops.__wrapped__(Linear(), (4, 4, 3))
  assert flops == pytest.approx(2 * 10 * 48 + 10, rel=0.02)


def test_bytes_count_what_is_not_learned():
  network = MODELS["resnet8"](num_classes=10)
  norms = [16, 16, 16, 32, 32, 32, 64, 64, 64]  # the stem, then two or, with a shortcut, three in each block
  statistics = 4 * 2 * sum(norms)
  assert (
    introspection.num_bytes(network, (32, 32, 3))
    == 4 * introspection.num_parameters(network, (32, 32, 3)) + statistics
  )


class Says(nn.Module):
  what: str

  @nn.compact
  def __call__(self, image):
    one, maps = jnp.zeros((len(image), 10)), (image, image)
    return {
      "tuple": (one, one),
      "right": Outputs(one, one, maps, maps),
      "logits": Outputs(one[:, :5], one, maps, maps),
      "pooled": Outputs(one, image, maps, maps),
      "list": Outputs(one, one, list(maps), maps),
      "flat": Outputs(one, one, maps, (one, one)),
      "counts": Outputs(one, one, maps, maps[:1]),
    }[self.what]


@pytest.mark.parametrize(
  "what, message",
  [
    ("tuple", "it returns tuple, not"),
    ("logits", r"its logits are \[1, 5\], not \[b, k\] = \[1, 10\]"),
    ("pooled", r"its embedding is \[1, 4, 4, 3\]"),
    ("list", "its features are not a tuple of maps"),
    ("flat", "its preactivations are not a tuple of maps"),
    ("counts", "it has 2 features, but 1 preactivations"),
  ],
)
def test_outputs_are_checked(what, message):
  introspection.check_outputs(Says("right"), (4, 4, 3), 10)
  with pytest.raises(ValueError, match=message):
    introspection.check_outputs(Says(what), (4, 4, 3), 10)
