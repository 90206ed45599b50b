"""Curriculum temperature: a temperature trained to make the wrapped method harder.

Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge Distillation", AAAI 2023,
https://arxiv.org/abs/2211.16231

  L_i = T^2 L_i(z_student / T, z_teacher / T),    T = start + end sigmoid(theta)
  theta descends -lambda dL / dtheta,             lambda = (1 - cos(pi min(e, E) / E)) / 2

A plug-in: theta learns with the student, but climbs the loss that the student descends, by a gradient reversed on its
way back. The curriculum lambda grows from 0 to 1 over the first E = `curriculum_epochs` epochs, e being 1 in the
whole first epoch of the stage, 2 in the second, as in the authors' code. T lies between start and start + end.

KD with a temperature of its own of 1 becomes T^2 KL(softmax(z_teacher / T) || softmax(z_student / T)), the paper's
loss. A method with a temperature t of its own works at t T: set it to 1 inside this plug-in, where there is one.

The wrapped method should compute its loss from logits alone, as response methods do: a loss of features
or from peers is multiplied by T^2 and does not depend on T. Several teachers share T. Beside the plug-in
logit_standardization this one has to be the inner one; inside multi_teacher each teacher has a theta of its own.

With `per_instance` every example has its own theta, from a network of two linear layers on the logits of the student
and the teacher (of several teachers their mean): the paper's instance-wise temperature.

Differences: theta is one number, 1 at first (T = 15.6), as in the authors' code, and its gradient is averaged over
devices, which that code leaves out. The authors' repository does not have the network of `per_instance`: its hidden
width, 128, with ReLU, and its start, PyTorch's, are choices of this module. The network takes the student's logits as
given, so that the student learns nothing through its own temperature. The authors' weight decay reaches theta as it
does the student; here this is up to the optimiser of the stage.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from smskd_jax import errors
from smskd_jax.layers import basic
from smskd_jax.losses import adapters, contract, numerics
from smskd_jax.types import MethodVariables, Outputs


class TemperatureNet(nn.Module):
  """Two linear layers with ReLU: logits of two networks to one theta per example."""

  hidden: int = 128

  @nn.compact
  def __call__(
    self, student_logits: jax.Array, teacher_logits: jax.Array, axis_name: str | None = None
  ) -> jax.Array:
    """Theta, [b, 1]; examples are independent, so that the devices need not meet."""
    del axis_name
    x = jnp.concatenate([student_logits, teacher_logits], axis=-1)
    x = nn.relu(basic.linear(self.hidden, x.shape[-1], name="hidden")(x))
    return basic.linear(1, self.hidden, name="theta")(x)


@jax.custom_vjp
def reverse_gradient(x: jax.Array, scale: jax.Array) -> jax.Array:
  """`x` itself, whose gradient is multiplied by -scale on its way back.

  Args:
    x: any shape.
    scale: [].
  """
  del scale
  return x


def _forward(x, scale):
  return x, scale


def _backward(scale, gradient):
  return -scale.astype(gradient.dtype) * gradient, jnp.zeros_like(scale)


reverse_gradient.defvjp(_forward, _backward)


def curriculum(epoch: jax.Array | float, *, epochs: float = 10.0) -> jax.Array:
  """lambda, which grows from epoch to epoch and stays the same within one.

  Args:
    epoch: [], the epochs so far, with their fraction.
    epochs: E > 0, after which it is 1.
  """
  current = jnp.floor(jnp.asarray(epoch, float)) + 1.0
  return 0.5 * (1.0 - jnp.cos(jnp.pi * jnp.minimum(current / epochs, 1.0)))


def temperature(theta: jax.Array, *, start: float = 1.0, end: float = 20.0) -> jax.Array:
  """T = start + end sigmoid(theta), in the shape of theta."""
  return start + end * jax.nn.sigmoid(theta)


def _logits(student: Outputs, teachers: tuple[Outputs, ...]) -> tuple[jax.Array, jax.Array]:
  """Inputs of `TemperatureNet`: the student's logits, and the mean of the teachers'."""
  teacher_mean = jnp.mean(jnp.stack([numerics.upcast(teacher.logits) for teacher in teachers]), axis=0)
  return jax.lax.stop_gradient(numerics.upcast(student.logits)), teacher_mean


def _divide_logits(networks: tuple[Outputs, ...], temperature: jax.Array | float) -> tuple[Outputs, ...]:
  return contract.transform_logits(lambda logits: numerics.upcast(logits) / temperature, networks)


def method(
  wrapped: contract.Method,
  /,
  *,
  start: float = 1.0,
  end: float = 20.0,
  curriculum_epochs: float = 10.0,
  per_instance: bool = False,
) -> contract.Method:
  """Wraps a method with a learned temperature; the variables hold theta and the method's."""
  errors.check_positive("ctkd", start=start)
  errors.check_non_negative("ctkd", end=end)
  errors.check_positive("ctkd", curriculum_epochs=curriculum_epochs)
  errors.check_boolean("ctkd", per_instance=per_instance)

  def init(key, student, teachers, labels, *statistics):
    method_key, theta_key = jax.random.split(key)
    if per_instance:
      if not teachers:
        raise ValueError("ctkd: per_instance needs at least one teacher, got 0")
      theta = adapters.init(TemperatureNet(), theta_key, *jax.eval_shape(_logits, student, teachers)).params
    else:
      theta = jnp.ones((), jnp.promote_types(student.logits.dtype, jnp.float32))
    student, *teachers = jax.eval_shape(lambda x: _divide_logits(x, 1.0), (student, *teachers))
    aux = wrapped.init(method_key, student, tuple(teachers), labels, *statistics)
    return MethodVariables(params={"theta": theta, "method": aux.params}, state=aux.state)

  def apply(params, state, student, teachers, context):
    theta = params["theta"]
    if per_instance:
      theta, _ = adapters.apply(
        TemperatureNet(), theta, {}, *_logits(student, teachers), axis_name=context.axis_name
      )
    theta = reverse_gradient(theta, curriculum(context.epoch, epochs=curriculum_epochs))
    t = temperature(theta, start=start, end=end)
    student, *teachers = _divide_logits((student, *teachers), t)
    loss, state = wrapped.apply(
      params["method"], state, student, tuple(teachers), context, stop_teacher_gradient=False
    )
    return jnp.square(jnp.ravel(t) if per_instance else t) * loss, state

  own_reads = {"logits"} if per_instance else set()
  return contract.wrap(
    wrapped,
    init,
    apply,
    reads=wrapped.reads | own_reads,
    student_reads=wrapped.student_reads | own_reads,
    transforms_logits=True,
    learns="the temperature",
  )
