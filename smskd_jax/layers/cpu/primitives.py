"""JAX primitives of a convolution and its gradients, in the form of `forms.choose` on CPUs.

The convolution is linear in its inputs and in its kernel, and so are both gradients: the derivatives of each of the
three are the other two. Programs for other platforms have XLA's convolutions, and exported programs have no call of
oneDNN, because another process or machine may lack it.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, cast

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp
import numpy as np

from smskd_jax.layers.cpu import winograd
from smskd_jax.layers.cpu.forms import Convolution, Direction, Form, choose
from smskd_jax.runtime import onednn, parallel

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(x: jax.Array, kernel: jax.Array, conv: Convolution) -> jax.Array:
  """Convolves x, [b, h, w, i], by a kernel, [height, width, i, o]: [b, h, w, o].

  Both are of one type, float32 or float64.
  """
  return cast(jax.Array, _forward.bind(x, kernel, conv=conv))


def _xla_forward(x, kernel, conv):
  return lax.conv_general_dilated(
    x, kernel, conv.strides, conv.padding, dimension_numbers=_DIMENSIONS, precision=conv.precision
  )


def _xla_input_gradient(gradient, kernel, conv):
  x = jax.ShapeDtypeStruct(conv.x, gradient.dtype)
  return jax.linear_transpose(lambda x: _xla_forward(x, kernel, conv), x)(gradient)[0]


def _xla_kernel_gradient(x, gradient, conv):
  kernel = jax.ShapeDtypeStruct(conv.kernel, gradient.dtype)
  return jax.linear_transpose(lambda kernel: _xla_forward(x, kernel, conv), kernel)(gradient)[0]


_XLA: dict[Direction, Callable] = {
  Direction.FORWARD: _xla_forward,
  Direction.INPUT_GRADIENT: _xla_input_gradient,
  Direction.KERNEL_GRADIENT: _xla_kernel_gradient,
}
_WINOGRAD: dict[Direction, Callable] = {
  Direction.FORWARD: winograd.convolve,
  Direction.INPUT_GRADIENT: winograd.input_gradient,
  Direction.KERNEL_GRADIENT: winograd.kernel_gradient,
}


def _make_primitive(direction: Direction) -> Primitive:
  """The primitive of a direction, without derivatives."""
  primitive = Primitive(f"cpu_convolution_{direction}")

  def shape(a, b, *, conv):
    del b
    return jax.core.ShapedArray(conv.result(direction), a.dtype)

  primitive.def_impl(jax.jit(primitive.bind, static_argnames="conv"))
  primitive.def_abstract_eval(shape)
  mlir.register_lowering(primitive, mlir.lower_fun(_XLA[direction], multiple_results=False))
  mlir.register_lowering(primitive, functools.partial(_lower_for_cpu, direction), platform="cpu")
  batching.primitive_batchers[primitive] = functools.partial(_batch, direction, primitive)
  return primitive


def _lower_for_cpu(direction: Direction, context: Any, *operands: Any, conv: Convolution) -> Any:
  """Lowering rule for CPUs."""
  exported = context.module_context.lowering_parameters.for_export
  targets = {} if exported else onednn.targets()
  form = choose(direction, conv, context.avals_in[0].dtype, has_onednn=bool(targets))
  if form is Form.ONEDNN:
    # Of several devices, each has one thread: more would compete for the cores.
    threads = parallel.num_cpus() if jax.local_device_count("cpu") == 1 else 1
    return jax.ffi.ffi_lowering(targets[direction])(
      context,
      *operands,
      strides=np.array(conv.strides, np.int64),
      padding=np.array(conv.padding, np.int64).reshape(-1),
      threads=np.int64(threads),
    )

  def function(a, b):
    return _WINOGRAD[direction](a, b) if form is Form.WINOGRAD else _XLA[direction](a, b, conv)

  return mlir.lower_fun(function, multiple_results=False)(context, *operands)


def _batch(
  direction: Direction, primitive: Primitive, operands: Sequence[Any], axes: Any, *, conv: Convolution
) -> Any:
  """Batching rule.

  Maps of one kernel become a larger batch, several kernels XLA's grouped convolution.
  """
  maps, kernel = operands
  if direction is Direction.KERNEL_GRADIENT or axes[1] is not None:
    return jax.vmap(functools.partial(_XLA[direction], conv=conv), in_axes=axes)(maps, kernel), 0
  maps = jnp.moveaxis(maps, axes[0], 0)
  larger = conv._replace(x=(len(maps) * conv.x[0], *conv.x[1:]))
  y = primitive.bind(maps.reshape(-1, *maps.shape[2:]), kernel, conv=larger)
  return y.reshape(*maps.shape[:2], *y.shape[1:]), 0


_forward, _input_gradient, _kernel_gradient = map(_make_primitive, Direction)

ad.defbilinear(
  _forward,
  lambda y, x, kernel, conv: _input_gradient.bind(y, kernel, conv=conv),
  lambda y, x, kernel, conv: _kernel_gradient.bind(x, y, conv=conv),
)
ad.defbilinear(
  _input_gradient,
  lambda x, y, kernel, conv: _forward.bind(x, kernel, conv=conv),
  lambda x, y, kernel, conv: _kernel_gradient.bind(x, y, conv=conv),
)
ad.defbilinear(
  _kernel_gradient,
  lambda kernel, x, y, conv: _input_gradient.bind(y, kernel, conv=conv),
  lambda kernel, x, y, conv: _forward.bind(x, kernel, conv=conv),
)
