"""Tests of losses/ft.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import ft
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def arrays(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def outputs(*features):
  return Outputs(None, None, features, features)


STUDENT, TEACHER = ((3, 4, 4, 2), (3, 2, 2, 6))


def prepared(**hyper_parameters):
  """(method, function that makes its MethodVariables, student, teachers): a map of 4x4x2 and the teacher's of 2x2x6."""
  student_outputs, teachers = outputs(arrays(0, *STUDENT)), (outputs(arrays(1, *TEACHER)),)
  method = ft.method(**hyper_parameters)
  return (
    method,
    lambda: method.init(jax.random.key(0), student_outputs, teachers, None),
    student_outputs,
    teachers,
  )


@functools.cache
def started():
  """(MethodVariables, student, teachers)."""
  _, init, student_outputs, teachers = prepared()
  return jax.jit(init)(), student_outputs, teachers


@functools.cache
def compiled(**hyper_parameters):
  """(params, state, student's map, epoch) -> ((mean loss, new state), gradients by the parameters and by the map)."""
  method, _, _, teachers = prepared(reconstruction_weight=0.25, **hyper_parameters)

  def mean_loss(params, feature, state, epoch):
    value, state = method.apply(params, state, outputs(feature), teachers, Context(None, epoch=epoch))
    return value.mean(), state

  gradients = jax.value_and_grad(mean_loss, argnums=(0, 1), has_aux=True)
  return jax.jit(lambda params, state, feature, epoch=0.0: gradients(params, feature, state, epoch))


def conv(x, weights):
  """A 3x3 convolution padded by zeros, one offset at a time."""
  h, w = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(padded[:, i : i + h, j : j + w] @ weights[i, j] for i in range(3) for j in range(3))


def coder(x, params, *, normalise=False):
  for i in range(3):
    x = conv(x, np.asarray(params[f"conv_{i}"]["kernel"]))
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) if normalise else x
    x = np.where(x > 0, x, 0.1 * x)
  return x


def test_worked_by_hand():
  # Two positions, two channels: mean squares 5 and 12.5 against 1 and 0.
  student = np.array([[[[1.0, 3.0], [4.0, 3.0]]]])
  teacher = np.array([[[[1.0, -1.0], [0.0, 0.0]]]])
  difference = np.array([5, 12.5]) / np.hypot(5, 12.5) - np.array([1, 0])
  np.testing.assert_allclose(ft.loss(student, teacher), [np.abs(difference).mean()])
  np.testing.assert_allclose(ft.loss(student, teacher, p2=2), [(difference**2).mean()])
  first_powers = np.array([2, 3.5]) / np.hypot(2, 3.5) - np.zeros(2)
  np.testing.assert_allclose(ft.loss(student, teacher, p1=1), [np.abs(first_powers).mean()])


def test_the_larger_factor_is_averaged():
  large, small = arrays(0, 2, 4, 4, 3), arrays(1, 2, 2, 2, 5)
  averaged = large.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
  np.testing.assert_allclose(ft.loss(large, small), ft.loss(averaged, small))


def test_value_of_all_parts():
  aux, student_outputs, teachers = started()
  feature = np.asarray(teachers[0].features[-1])
  factor = coder(feature, aux.params["paraphraser"]["encoder"])
  assert factor.shape == (3, 2, 2, 3)
  error = np.mean((coder(factor, aux.params["paraphraser"]["decoder"]) - feature) ** 2)
  student = coder(np.asarray(student_outputs.features[-1]), aux.params["translator"], normalise=True)
  (value, _), _ = compiled()(*aux, student_outputs.features[-1])
  np.testing.assert_allclose(value, ft.loss(student, factor).mean() + 0.25 * error, rtol=1e-8)


def first_stage_state(params, aux):
  """The state that a method with epochs of its paraphraser has."""
  return {**aux.state, "frozen": params["paraphraser"]}


def check_slope(f, x, gradient):
  """Compares a gradient with the difference of f along some direction."""
  rng = np.random.default_rng(2)
  direction = jax.tree.map(lambda x: rng.normal(size=x.shape), x)

  def moved(step):
    return f(jax.tree.map(lambda x, d: x + step * d, x, direction))

  slope = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
  np.testing.assert_allclose((moved(1e-6) - moved(-1e-6)) / 2e-6, slope, rtol=1e-5)


def test_each_part_learns_from_its_own_term():
  aux, student_outputs, _ = started()
  (feature,) = student_outputs.features
  _, (by_params, by_feature) = compiled()(*aux, feature)
  assert all(np.any(g) for g in jax.tree.leaves((by_params, by_feature)))

  def student_loss(x):
    return compiled()({**aux.params, "translator": x[0]}, aux.state, x[1])[0][0]

  def paraphraser_loss(x):
    params = {**aux.params, "paraphraser": x}
    return compiled(paraphraser_epochs=2.0)(params, first_stage_state(params, aux), feature)[0][0]

  check_slope(student_loss, (aux.params["translator"], feature), (by_params["translator"], by_feature))
  check_slope(paraphraser_loss, aux.params["paraphraser"], by_params["paraphraser"])


def test_paraphraser_first_and_then_frozen():
  aux, student_outputs, _ = started()
  (feature,) = student_outputs.features
  step = compiled(paraphraser_epochs=2.0)
  start = jax.eval_shape(prepared(paraphraser_epochs=2.0)[1]).state
  learned = jax.tree.map(lambda x: 1.1 * x, aux.params)
  before = step(learned, first_stage_state(aux.params, aux), feature, 1.99)
  (reconstruction, state), (by_params, by_feature) = before
  assert jax.tree.structure(state) == jax.tree.structure(start)
  assert not any(np.any(g) for g in jax.tree.leaves((by_params["translator"], by_feature)))
  assert all(np.any(g) for g in jax.tree.leaves(by_params["paraphraser"]))

  # From epoch 2 on, whatever becomes of the parameters, the paraphraser is that of the last step before.
  decayed = {**learned, "paraphraser": jax.tree.map(lambda x: 0.5 * x, learned["paraphraser"])}
  (factor_loss, state), (by_params, by_feature) = step(decayed, state, feature, 2.0)
  jax.tree.map(np.testing.assert_array_equal, state["frozen"], learned["paraphraser"])
  assert not any(np.any(g) for g in jax.tree.leaves(by_params["paraphraser"]))
  assert all(np.any(g) for g in jax.tree.leaves((by_params["translator"], by_feature)))
  (both, _), (_, joint_gradient) = compiled()(learned, aux.state, feature)
  np.testing.assert_allclose(reconstruction + factor_loss, both)
  np.testing.assert_allclose(by_feature, joint_gradient)


@pytest.mark.parametrize("rate, channels", [(0.5, 3), (0.01, 1), (2.0, 12)])
def test_rate(rate, channels):
  _, init, _, _ = prepared(rate=rate)
  params = jax.eval_shape(init).params
  assert params["translator"]["conv_2"]["kernel"].shape == (3, 3, channels, channels)
  assert params["paraphraser"]["decoder"]["conv_0"]["kernel"].shape == (3, 3, channels, channels)


@pytest.mark.parametrize(
  "hyper_parameters, message",
  [
    ({"rate": 0.0}, "ft: rate must be a positive number, got 0.0"),
    ({"p1": 0}, "ft: p1 must be a positive integer, got 0"),
    ({"p2": 1.5}, "ft: p2 must be a positive integer, got 1.5"),
    ({"reconstruction_weight": 0.0}, "ft: reconstruction_weight must be a positive number"),
    ({"paraphraser_epochs": -1.0}, "ft: paraphraser_epochs must be a number >= 0, got -1.0"),
    ({"student_layer": 0.5}, "ft: student_layer must be an integer, got 0.5"),
    ({"teacher_layer": 4}, "ft: layer 4 does not exist, the teacher has 1 feature maps"),
  ],
)
def test_refuses(hyper_parameters, message):
  with pytest.raises(ValueError, match=message):
    prepared(**hyper_parameters)[1]()
