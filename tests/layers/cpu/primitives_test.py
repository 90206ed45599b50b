"""Tests of layers/cpu/primitives.py: every form equals XLA's convolution, with gradients, batching and threads."""

from concurrent.futures import ThreadPoolExecutor
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax import models
from smskd_jax.layers.cpu import primitives
from smskd_jax.layers.cpu.forms import Convolution, Direction, Form
from smskd_jax.runtime import onednn

TOLERANCE = 1e-5  # relative to the largest value
ODD = Convolution((2, 9, 7, 3), (3, 5, 3, 4), (2, 1), ((1, 0), (2, 3)))
WIDE = Convolution((2, 4, 4, 128), (3, 3, 128, 128), (1, 1), ((1, 1), (1, 1)))

needs_onednn = pytest.mark.skipif(onednn.version() is None, reason="needs the extra cpu and a C++ compiler")


def zoo_convolutions():
  """The convolutions of all networks for tiny images, without repetition."""
  found = {}

  def record(x, kernel, conv):
    found[conv] = None
    return jnp.zeros(conv.output, x.dtype)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(primitives, "convolve", record)
    for name in models.NETWORKS:
      side = 64 if name.startswith("imagenet") else 32
      network = models.NETWORKS[name](num_classes=2)
      jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
  return list(found)


def example(conv, leading=()):
  """(x, kernel, gradient by the output)."""
  rng = np.random.default_rng(0)
  shapes = (conv.x, conv.kernel, conv.output)
  return tuple(rng.normal(size=(*leading, *shape)).astype(np.float32) for shape in shapes)


def with_gradients(convolve, conv):
  """Function (x, kernel, gradient) -> (y, gradients by x and by the kernel)."""

  def both(x, kernel, gradient):
    y, pull_back = jax.vjp(functools.partial(convolve, conv=conv), x, kernel)
    return y, *pull_back(gradient)

  return both


def assert_close(found, expected, tolerance=TOLERANCE):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert a.shape == b.shape
    assert np.max(np.abs(np.asarray(a) - np.asarray(b))) <= tolerance * np.max(np.abs(b))


ours, xlas = (
  functools.partial(with_gradients, convolve) for convolve in (primitives.convolve, primitives._xla_forward)
)


@needs_onednn
def test_every_convolution_of_the_zoo_is_xlas(monkeypatch):
  monkeypatch.setattr(primitives, "choose", lambda *_, **__: Form.ONEDNN)
  for conv in zoo_convolutions():
    inputs = example(conv)
    assert_close(jax.jit(ours(conv))(*inputs), jax.jit(xlas(conv))(*inputs))


@pytest.mark.parametrize("conv", [ODD, WIDE])
@pytest.mark.parametrize("form", [None, Form.WINOGRAD, Form.XLA])
def test_every_form_is_the_convolution(conv, form, monkeypatch):
  if form is Form.WINOGRAD and conv is ODD:
    return
  if form is not None:
    monkeypatch.setattr(primitives, "choose", lambda *_, **__: form)
  inputs = example(conv)
  assert_close(jax.jit(ours(conv))(*inputs), xlas(conv)(*inputs))


@pytest.mark.parametrize(
  "axes", [(0, None, 0), (0, 0, 0), (None, 0, None), (None, None, 0), (0, None, None), (1, None, 2)]
)
def test_vmap(axes):
  inputs = [
    np.stack([a, 2 * a], axis) if axis is not None else a for a, axis in zip(example(ODD), axes, strict=True)
  ]
  found, expected = (jax.vmap(f(ODD), in_axes=axes)(*inputs) for f in (ours, xlas))
  assert_close(found, expected)


def test_derivatives_of_derivatives():
  def second(convolve):
    def loss(x, kernel):
      return jnp.sum(jnp.sin(convolve(x, kernel, conv=ODD)))

    def norm(x, kernel):
      return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel))

    return jax.jit(lambda *inputs: (jax.grad(norm, (0, 1))(*inputs), jax.jvp(loss, inputs, inputs)))

  x, kernel, _ = example(ODD)
  found, expected = (second(f)(x, 0.1 * kernel) for f in (primitives.convolve, primitives._xla_forward))
  assert_close(found, expected, 1e-4)


def test_several_devices_each_compute_their_part():
  x, kernel, gradient = example(ODD, (8,))
  parts = (x, kernel[0], gradient)

  def step(*inputs):
    _, x_gradient, kernel_gradient = ours(ODD)(*inputs)
    return x_gradient, jax.lax.pmean(kernel_gradient, "devices")

  step = jax.pmap(step, axis_name="devices", in_axes=(0, None, 0), out_axes=(0, None))
  expected = [xlas(ODD)(x[i], kernel[0], gradient[i]) for i in range(8)]
  mean = np.mean([found[2] for found in expected], axis=0)
  assert_close(step(*parts), (np.stack([found[1] for found in expected]), mean))


def test_threads_share_compiled_code():
  run = jax.jit(ours(ODD))
  inputs = [example(ODD)] * 2 + [tuple(2 * a for a in example(ODD))] * 2
  expected = [xlas(ODD)(*one) for one in inputs]
  with ThreadPoolExecutor(4) as pool:
    for _ in range(20):
      for found, one in zip(pool.map(lambda args: run(*args), inputs), expected, strict=True):
        assert_close(found, one)


def lowered(dtype=np.float32, **options):
  run = jax.jit(ours(ODD))
  inputs = [jax.ShapeDtypeStruct(a.shape, dtype) for a in example(ODD)]
  if options:
    return jax.export.export(run, **options)(*inputs).mlir_module()
  return run.lower(*inputs).as_text()


@needs_onednn
def test_programs_of_a_cpu_call_onednn():
  text = lowered()
  assert all(target in text for target in onednn.targets().values())
  assert "stablehlo.convolution" not in text and "threads = 1" in text  # of eight devices, each has one


@pytest.mark.parametrize("platforms", [("cpu",), ("cuda",), ("cpu", "tpu")])
def test_exported_programs_have_xlas_convolutions(platforms):
  text = lowered(platforms=platforms)
  assert text.count("stablehlo.convolution") >= 3 and "custom_call" not in text


def test_float64_is_not_onednns(float64):
  assert "custom_call" not in lowered(np.float64)


def test_directions_have_handlers():
  assert {direction.value for direction in Direction} == set(onednn.HANDLERS)
