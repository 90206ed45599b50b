"""Traits `spots` and `Context.mask`: parts of a loss by layer, and relations among some images alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from method_examples import TRAITS, example_variables, loss_and_gradients, make_example, map_rows
import networks
from smskd_jax.losses import METHODS, fitnet, ft, sakd, vid
from smskd_jax.losses.contract import Context

pytestmark = pytest.mark.usefixtures("float64")

WITH_SPOTS = sorted(name for name, method in TRAITS.items() if method.spots is not None)
RELATIONS = ["cc", "pkt", "rkd", "sp"]
PER_IMAGE = ["at", "nst", "vid"]  # without batch norm or memory
MASKS = [[1, 0, 1, 1, 0, 0, 1, 1], [0] * 8, [0, 0, 0, 1, 0, 0, 0, 0], [1] * 8]


def run(name, mask, rows=slice(None), axis_name=None):
  """(loss, gradient of the student's loss) of an example's rows, with a mask."""
  student, teachers, batch = map_rows(lambda x: x[rows], make_example(name, dtype=np.float64))
  variables = example_variables(name, dtype=np.float64)

  def summed(student):
    context = Context(batch, jax.random.key(1), 0.5, axis_name, mask=mask)
    loss, _ = TRAITS[name].apply(*variables, student, teachers, context)
    return loss.sum(), loss

  compiled = jax.jit(jax.grad(summed, has_aux=True), compiler_options=networks.FAST_COMPILE)
  gradient, loss = compiled(student)
  return loss, (gradient.embedding, gradient.features)


def test_the_methods_that_spot_adaptive_distillation_wraps_have_spots():
  assert tuple(WITH_SPOTS) == sakd.WRAPPED


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("name", RELATIONS)
def test_a_masked_loss_is_the_loss_of_the_images_of_the_mask(name, mask):
  mask = np.array(mask, bool)
  loss, gradient = run(name, mask)
  assert not np.any(loss[~mask]) and not any(np.any(x[~mask]) for x in jax.tree.leaves(gradient))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((loss, gradient)))
  if mask.any():
    expected = run(name, None, rows=np.flatnonzero(mask))
    for a, b in zip(jax.tree.leaves((loss, gradient)), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a[mask], b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", RELATIONS)
def test_masks_span_devices(name):
  student, teachers, batch = make_example(name, dtype=np.float64)
  variables, mask = example_variables(name, dtype=np.float64), np.array(MASKS[0], bool)

  def apply(variables, inputs, axis_name=None):
    (student, teachers, batch), mask = inputs
    method = TRAITS[name]
    masked = method._replace(apply=lambda *a: method.apply(*a[:-1], a[-1]._replace(mask=mask)))
    (loss, _), (_, by_student, _) = loss_and_gradients(masked, variables, student, teachers, batch, axis_name)
    return loss, (by_student.embedding, by_student.features)

  inputs = ((student, teachers, batch), mask)
  loss, gradient = jax.jit(apply)(variables, inputs)

  def split(x):
    return x.reshape(4, -1, *x.shape[1:])

  pieces = map_rows(split, inputs, otherwise=lambda x: jnp.broadcast_to(x, (4, *x.shape)))
  mapped = jax.pmap(
    lambda *a: apply(*a, axis_name="batch"), "batch", in_axes=(None, 0), devices=jax.devices()[:4]
  )
  losses, gradients = mapped(variables, pieces)
  np.testing.assert_allclose(losses, split(loss), rtol=1e-9, atol=1e-12)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, 4 * split(b), rtol=1e-8, atol=1e-12), gradients, gradient
  )


@pytest.mark.parametrize("name", PER_IMAGE)
def test_the_other_losses_are_those_of_each_image_alone(name):
  loss, _ = run(name, None)
  np.testing.assert_allclose(run(name, None, rows=slice(2, 5))[0], loss[2:5], rtol=1e-9)


@pytest.mark.parametrize("name", WITH_SPOTS)
def test_the_loss_is_the_sum_of_its_spots(name):
  method = METHODS[name](student_layers=(0, 1, 2), teacher_layers=(0, 2, 3)) if name == "sp" else TRAITS[name]
  student, teachers, batch = make_example(name, dtype=np.float64)
  context = Context(batch, jax.random.key(1), 0.5)
  params, state = method.init(jax.random.key(0), student, teachers, np.arange(50) % 5)
  spots = method.spots(student, teachers)
  total = 0
  for i, spot in enumerate(spots):
    part = spot.method or method
    own = {f"tap{0}": params[f"tap{i}"]} if name == "vid" else params
    total = total + part.apply(own, state, student, teachers, context)[0]
  expected = method.apply(params, state, student, teachers, context)[0]
  np.testing.assert_allclose(total, expected, rtol=1e-10)
  assert len(spots) == {"at": 2, "nst": 2, "vid": 2, "sp": 3}.get(name, 1)


def test_layers_of_spots_are_those_of_the_methods():
  student, teachers, _ = make_example("at")

  def layers(method):
    return [(spot.student_layer, spot.teacher_layer) for spot in method.spots(student, teachers)]

  assert layers(METHODS["at"]()) == [(1, 1), (2, 2)]
  assert layers(vid.method(student_layers=(0, -1), teacher_layers=(1, -1))) == [(0, 1), (2, 3)]
  assert layers(fitnet.method(student_layer=-1, teacher_layer=2)) == [(2, 2)]
  assert layers(ft.method()) == [(2, 3)]
  assert layers(METHODS["sp"]()) == [(2, 3)]
  assert layers(METHODS["pkt"]()) == [(None, None)]


def test_options_of_a_method_are_those_of_its_spots():
  student, teachers, batch = make_example("at", dtype=np.float64)
  whole = METHODS["at"](p=4, student_layers=(1,), teacher_layers=(1,))
  (spot,) = whole.spots(student, teachers)
  context = Context(batch)
  losses = [one.apply((), (), student, teachers, context)[0] for one in (whole, spot.method)]
  np.testing.assert_allclose(*losses, rtol=1e-12)
