"""Factor transfer: the student matches an autoencoder's code of the teacher's last map.

Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
https://arxiv.org/abs/1802.04977

  L_i = mean_{h,w} |Q(F_student,i) - Q(F_teacher,i)|^p2 + w mean_{h,w,c} (D(F_teacher,i) - f_teacher,i)^2
  F_student = translator(f_student), F_teacher = E(f_teacher), Q(F) = N(mean_c F^p1)

The autoencoder, encoder E and decoder D, is the paraphraser; N divides by the Euclidean norm over the positions. The
first term teaches the student and its translator alone, the second, the reconstruction error, the paraphraser alone.
The value is the sum of both.

Differences: in the paper the paraphraser learns first, for 30 epochs, and is then frozen. Here it learns beside the
translator, all along by default. With `paraphraser_epochs` = n > 0 the reconstruction error is all the loss for n
epochs of the stage; then the paraphraser is frozen, at its parameters of the last step before, and the factors are all.
The weight w is an addition: under the published outer weight of 200 at the learning rate 0.05, the paraphraser moves as
at the learning rate 0.01, which the public code has for students that are ResNets. The rest is as in that code, of
"Contrastive Representation Distillation" (Tian, Krishnan, Isola, ICLR 2020): where the paper takes the p-norm between
factors of norm 1, there are attention maps Q of them, of powers p1, and a mean; the paraphraser has no batch norm, the
translator has; the larger of two factors is averaged down to the smaller. For an odd p2 > 1 that code sums signed
powers, this module magnitudes. Its transposed convolutions have stride 1 and so are convolutions here, and biases start
at zero.
"""

import functools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, at, contract, maps, numerics
from smskd_jax.types import MethodVariables


class Coder(nn.Module):
  """Three 3x3 convolutions, optionally with batch norm, each with leaky ReLU of slope 0.1."""

  channels: tuple[int, int, int]
  use_batch_norm: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, axis_name: str | None = None) -> jax.Array:
    """[b, h, w, c] to [b, h, w, the last of channels]."""
    for i, c in enumerate(self.channels):
      x = basic.conv(c, 3, use_bias=not self.use_batch_norm, kernel_init=basic.uniform, name=f"conv_{i}")(x)
      x = basic.norm(train=True, axis_name=axis_name, name=f"norm_{i}")(x) if self.use_batch_norm else x
      x = nn.leaky_relu(x, 0.1)
    return x


class Paraphraser(nn.Module):
  """Autoencoder of a map; its code, the factor, has as many positions and other channels."""

  factor_channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(factor, reconstruction) of a map."""
    f, c = self.factor_channels, x.shape[-1]
    factor = Coder((c, f, f), name="encoder")(x)
    return factor, Coder((f, c, c), name="decoder")(factor)


class FtModules(nn.Module):
  """Paraphraser of the teacher's map and translator of the student's."""

  factor_channels: int

  @nn.compact
  def __call__(
    self, student: jax.Array, teacher: jax.Array, axis_name: str | None = None
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(student's factor, teacher's factor, teacher's reconstruction) of maps [b, h, w, c]."""
    channels = (student.shape[-1], self.factor_channels, self.factor_channels)
    student_factor = Coder(channels, use_batch_norm=True, name="translator")(student, axis_name)
    return student_factor, *Paraphraser(self.factor_channels, name="paraphraser")(teacher)


def loss(student_factor: jax.Array, teacher_factor: jax.Array, *, p1: int = 2, p2: int = 1) -> jax.Array:
  """Mean difference of the factors' attention maps, per example.

  Args:
    student_factor: [b, h, w, c], from the translator.
    teacher_factor: [b, h', w', c'], from the paraphraser.
    p1: the power of the factor's entries.
    p2: the power of the differences.

  Returns:
    [b].
  """
  chex.assert_rank([student_factor, teacher_factor], 4)
  student, teacher = maps.match_spatial_size(numerics.upcast(student_factor), numerics.upcast(teacher_factor))
  return jnp.mean(jnp.abs(at.attention(student, p1) - at.attention(teacher, p1)) ** p2, axis=-1)


def reconstruction_error(reconstruction: jax.Array, feature: jax.Array) -> jax.Array:
  """Mean squared error [b] of two maps [b, h, w, c]."""
  difference = numerics.upcast(reconstruction) - numerics.upcast(feature)
  return jnp.mean(jnp.square(difference), axis=(1, 2, 3))


def method(
  *,
  rate: float = 0.5,
  p1: int = 2,
  p2: int = 1,
  reconstruction_weight: float = 0.001,
  paraphraser_epochs: float = 0.0,
  student_layer: int = -1,
  teacher_layer: int = -1,
) -> contract.Method:
  """FT between one layer of each network (0: stem, -1: last).

  Args:
    rate: channels of the factor for each one of the teacher's map.
    p1: the power of the factor's entries.
    p2: the power of the differences.
    reconstruction_weight: w.
    paraphraser_epochs: epochs in which only the paraphraser learns before it is frozen; 0: both learn throughout.
    student_layer: the student's map.
    teacher_layer: the teacher's map.
  """
  errors.check_positive("ft", rate=rate, reconstruction_weight=reconstruction_weight)
  errors.check_non_negative("ft", paraphraser_epochs=paraphraser_epochs)
  errors.check_positive_integer("ft", p1=p1, p2=p2)
  errors.check_integer("ft", student_layer=student_layer, teacher_layer=teacher_layer)

  def modules_and_maps(student, teachers):
    teacher = teachers[0].features[teacher_layer]
    return FtModules(max(1, int(rate * teacher.shape[-1]))), student.features[student_layer], teacher

  def init(key, student, teachers, labels):
    del labels
    contract.check_layer("ft", student_layer, "student", student)
    contract.check_layer("ft", teacher_layer, "teacher", contract.single_teacher("ft", teachers))
    module, student, teacher = modules_and_maps(student, teachers)
    params, statistics = adapters.init(module, key, student, teacher)
    frozen = params["paraphraser"] if paraphraser_epochs else ()
    return MethodVariables(params, {"statistics": statistics, "frozen": frozen})

  def apply(params, state, student, teachers, context):
    module, *features = modules_and_maps(student, teachers)
    learns, frozen = context.epoch < paraphraser_epochs, ()
    if paraphraser_epochs:
      frozen = jax.tree.map(functools.partial(jnp.where, learns), params["paraphraser"], state["frozen"])
      params = {**params, "paraphraser": frozen}
    outputs, statistics = adapters.apply(
      module, params, state["statistics"], *features, axis_name=context.axis_name
    )
    student_factor, teacher_factor, reconstruction = outputs
    factor_loss = loss(student_factor, jax.lax.stop_gradient(teacher_factor), p1=p1, p2=p2)
    reconstruction_loss = reconstruction_weight * reconstruction_error(reconstruction, features[1])
    both = factor_loss + reconstruction_loss
    value = jnp.where(learns, reconstruction_loss, factor_loss) if paraphraser_epochs else both
    return value, {"statistics": statistics, "frozen": frozen}

  spots = functools.partial(maps.single_layer_spot, student_layer, teacher_layer)
  return contract.make(init, apply, reads=("features",), spots=spots, learns="paraphraser and translator")
