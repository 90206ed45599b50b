"""One-for-all distillation: heads on the student's layers learn from the teacher's logits.

Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
Distillation", NeurIPS 2023, https://arxiv.org/abs/2310.19444

  L_i = w_z l(z_student,i) + w_f sum over layers k of l(H_k(f_student,i,k))
  l(z) = -((1 + p_y)^gamma - 1) log q_y - sum_{c != y} p_c log q_c
  p = softmax(z_teacher,i / T),   q = softmax(z / T)

y is the label. Maps of unlike architectures are not compared: heads H_k take the student's to logits, where only the
teacher's prediction matters. They learn with the student and are dropped after training. gamma >= 1 enhances the label;
with gamma = 1, l is the cross-entropy with the teacher's probabilities, which is not zero where the networks agree.
The paper writes l with (1 + p_y)^gamma: the 1 that is subtracted here is the cross-entropy with the label, which every
stage has as its own term. Weights are 1, 1 and 1, and T is 1, without a factor T^2. gamma is 1 on CIFAR-100 and 1.5 on
ImageNet in the authors' README.

The head of layer k of n, as in the authors' code: for maps that shrink from layer to layer ("convolutions"), n - k
separable convolutions of stride 2, each with twice the channels of the one before and the last with as many as the
wider embedding of both networks, or for the last layer a 1x1 convolution; for maps of one size ("attention"), such as
those of tokens, merging of 2x2 tokens while there are 14x14 or more, and max(n - k, 1) transformer blocks of 4 heads.
Then the mean over positions, and a linear layer.

Differences: the authors' code raises the other probabilities to gamma as well, which `modulate_all_classes` does too;
with gamma = 1 there is no difference. It has a gamma for each layer; here there is one. It reads four layers of every
network, written out by hand; here they are all feature layers but the stem, three of most networks for CIFAR. Networks
of tokens have no class token here, so that the head takes the mean; the transformer blocks are those of this package's
networks, with biases. Biases start at zero. For mixed images the label is that of the larger part, as in that code. For
ResNet18 and MobileNetV2 students on CIFAR-100 the authors used w_f = 0.1 (issues 14 and 32 of that code), not its
default.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic, transformer
from smskd_jax.losses import adapters, contract, numerics
from smskd_jax.types import Outputs

AUTO, CONVOLUTIONS, ATTENTION = "auto", "convolutions", "attention"
_NUM_HEADS, _MERGED_SIZE = 4, 7  # of the attention; tokens are merged while this remains, per side
_normal = basic.normal(0.02)


class SeparableBlock(nn.Module):
  """Two depthwise separable convolutions with batch norm and ReLU, the first of stride 2."""

  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None) -> jax.Array:
    """[b, h, w, c] to [b, ceil(h / 2), ceil(w / 2), channels]."""
    for i, (stride, channels) in enumerate(((2, x.shape[-1]), (1, self.channels))):
      c = x.shape[-1]
      x = basic.conv(c, 3, stride=stride, groups=c, name=f"depthwise{i}")(x)
      x = basic.conv(channels, 1, name=f"pointwise{i}")(x)
      x = nn.relu(basic.norm(train=True, axis_name=axis_name, name=f"norm{i}")(x))
    return x


class ConvolutionHead(nn.Module):
  """Logits of a map by separable convolutions."""

  num_blocks: int  # n - k
  width: int  # channels before the linear layer
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None) -> jax.Array:
    """[b, num_classes] of a map [b, h, w, c]."""
    channels = [x.shape[-1] * 2 ** (i + 1) for i in range(self.num_blocks - 1)] + [self.width]
    for i, c in enumerate(channels if self.num_blocks else ()):
      x = SeparableBlock(c, name=f"block{i}")(x, axis_name)
    if not self.num_blocks:
      x = basic.conv(self.width, 1, use_bias=True, name="conv")(x)
    return basic.linear(self.num_classes, self.width, kernel_init=_normal, name="linear")(x.mean((1, 2)))


class AttentionHead(nn.Module):
  """Logits of a map of tokens by transformer blocks."""

  num_blocks: int  # max(n - k, 1)
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None) -> jax.Array:
    """[b, num_classes] of a map [b, h, w, c]."""
    del axis_name
    b, h, w, c = x.shape
    merges = 0
    while min(h, w) >= 2 * _MERGED_SIZE and h % 2 == w % 2 == 0:
      h, w, merges = h // 2, w // 2, merges + 1
      x = x.reshape(b, h, 2, w, 2, c).transpose(0, 1, 3, 4, 2, 5).reshape(b, h, w, 4 * c)
      x = nn.LayerNorm(epsilon=1e-5, name=f"merge_norm{merges}")(x)
      x = nn.Dense(c, use_bias=False, kernel_init=_normal, name=f"merge{merges}")(x)
      is_last = min(h, w) < 2 * _MERGED_SIZE or h % 2 or w % 2
      x = x if merges > 1 and is_last else nn.gelu(x, approximate=False)
    x = x.reshape(b, h * w, c)
    for i in range(self.num_blocks):
      x = transformer.Block(_NUM_HEADS, None, _normal, name=f"block{i}")(x)
    return basic.linear(self.num_classes, c, kernel_init=_normal, name="linear")(x.mean(1))


class Heads(nn.Module):
  """A head for each feature layer, shallow first."""

  attention: bool
  width: int  # of convolution heads
  num_classes: int

  @nn.compact
  def __call__(self, features: tuple[jax.Array, ...], axis_name: str | None = None) -> tuple[jax.Array, ...]:
    """Logits [b, num_classes] of each map."""

    def head(k):
      depth = len(features) - 1 - k
      if self.attention:
        return AttentionHead(max(depth, 1), self.num_classes, name=f"head{k}")
      return ConvolutionHead(depth, self.width, self.num_classes, name=f"head{k}")

    return tuple(head(k)(x, axis_name) for k, x in enumerate(features))


def loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  *,
  gamma: float = 1.0,
  temperature: float = 1.0,
  modulate_all_classes: bool = False,
) -> jax.Array:
  """Cross-entropy with the teacher's probabilities, enhanced at the label.

  Args:
    student_logits: [b, k], of the student or of a head.
    teacher_logits: [b, k].
    labels: [b].
    gamma: >= 1.
    temperature: T > 0.
    modulate_all_classes: True takes p_c^gamma for the other classes too, as the authors' code.

  Returns:
    [b], in nats; >= 0.
  """
  chex.assert_rank([student_logits, teacher_logits, labels], [2, 2, 1])
  chex.assert_equal_shape([student_logits, teacher_logits])
  chex.assert_equal_shape_prefix([student_logits, labels], 1)
  log_q = jax.nn.log_softmax(numerics.upcast(student_logits) / temperature)
  log_p = jax.nn.log_softmax(numerics.upcast(teacher_logits) / temperature)
  weights = jnp.exp(gamma * log_p) if modulate_all_classes else jnp.exp(log_p)
  at_label = jnp.expm1(gamma * jnp.log1p(jnp.exp(numerics.gather_label(log_p, labels))))
  enhancement = at_label - numerics.gather_label(weights, labels)
  return -jnp.sum(weights * log_q, axis=-1) - enhancement * numerics.gather_label(log_q, labels)


def _select(student: Outputs, layers: tuple[int, ...]) -> tuple[jax.Array, ...]:
  """The student's maps at the layers, or at all but the stem, float32 at least."""
  chosen = layers or range(1, len(student.features))
  if not chosen:
    raise ValueError(
      "ofa: needs feature maps after the stem, the student has 1; name its layers, as layers=(0,)"
    )
  for layer in chosen:
    contract.check_layer("ofa", layer, "student", student)
  return tuple(numerics.upcast(student.features[layer]) for layer in chosen)


def _make_heads(kind: str, features: tuple[jax.Array, ...], width: int, num_classes: int) -> Heads:
  """Heads of a kind for maps; raises ValueError if heads of attention do not fit."""
  one_shape = len(features) > 1 and len({x.shape[1:] for x in features}) == 1
  attention = kind == ATTENTION or (kind == AUTO and one_shape)
  for x in features if attention else ():
    if x.shape[-1] % _NUM_HEADS:
      raise ValueError(
        f"ofa: heads of attention need channels that {_NUM_HEADS} divides, the student's map has {x.shape[-1]}; "
        f"use heads='{CONVOLUTIONS}'"
      )
  return Heads(attention, width, num_classes)


def method(
  *,
  gamma: float = 1.0,
  temperature: float = 1.0,
  modulate_all_classes: bool = False,
  logits_weight: float = 1.0,
  feature_weight: float = 1.0,
  heads: str = AUTO,
  layers: tuple[int, ...] = (),
) -> contract.Method:
  """OFA from a single teacher's logits. Of the teacher's embedding only the width is read.

  Args:
    gamma: >= 1.
    temperature: T > 0.
    modulate_all_classes: True as of `loss`.
    logits_weight: w_z.
    feature_weight: w_f.
    heads: 'convolutions', 'attention', or 'auto' for attention where all maps of the student have one shape.
    layers: feature layers of the student, 0 being the stem; empty for all but the stem.
  """
  errors.check_positive("ofa", gamma=gamma, temperature=temperature)
  if gamma < 1:
    raise ValueError(f"ofa: gamma must be a number >= 1, got {gamma}")
  errors.check_boolean("ofa", modulate_all_classes=modulate_all_classes)
  errors.check_non_negative("ofa", logits_weight=logits_weight, feature_weight=feature_weight)
  errors.check_choice("ofa", (AUTO, CONVOLUTIONS, ATTENTION), heads=heads)
  if not isinstance(layers, tuple):
    raise ValueError(f"ofa: layers must be a tuple of integers, got {layers!r}")
  for layer in layers:
    errors.check_integer("ofa", layers=layer)
  options = {"gamma": gamma, "temperature": temperature, "modulate_all_classes": modulate_all_classes}

  def init(key, student, teachers, labels):
    del labels
    teacher = contract.single_teacher("ofa", teachers)
    contract.check_same_classes("ofa", student, teacher)
    features = jax.eval_shape(lambda student: _select(student, layers), student)
    width = max(student.embedding.shape[-1], teacher.embedding.shape[-1])
    return adapters.init(_make_heads(heads, features, width, student.logits.shape[-1]), key, features)

  def apply(params, state, student, teachers, context):
    features, target = _select(student, layers), (teachers[0].logits, context.batch.label)
    width = params["head0"]["linear"]["kernel"].shape[0]  # a teacher cache may lack the embedding
    module = _make_heads(heads, features, width, student.logits.shape[-1])
    logits, state = adapters.apply(module, params, state, features, axis_name=context.axis_name)
    by_heads = sum(loss(z, *target, **options) for z in logits)
    return logits_weight * loss(student.logits, *target, **options) + feature_weight * by_heads, state

  return contract.make(
    init,
    apply,
    reads=("logits",),
    student_reads=("logits", "features"),
    needs_labels=True,
    learns="classifier heads",
  )
