"""Tests of losses/ofd.py."""

import math

import jax
import numpy as np
import pytest

from smskd_jax.losses import ofd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Norm, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(*preactivations, norms=()):
  return Outputs(None, None, preactivations, preactivations, norms=norms)


STEM = maps(9, 4, 4, 4, 2)
STUDENT = outputs(STEM, maps(0, 4, 4, 4, 3), maps(1, 4, 2, 2, 4))
NORMS = tuple(Norm(maps(10 + i, c), maps(20 + i, c)) for i, c in enumerate((2, 3, 5, 6)))
TEACHER = outputs(STEM, maps(2, 4, 4, 4, 3), maps(3, 4, 2, 2, 5), maps(4, 4, 2, 2, 6), norms=NORMS)


def start(teacher=TEACHER, **hparams):
  method = ofd.method(**hparams)
  return method, method.init(jax.random.key(0), STUDENT, (teacher,), None)


def run(method, aux, teacher=TEACHER):
  return jax.jit(method.apply)(*aux, STUDENT, (teacher,), Context(None))


def test_worked_by_hand():
  # Margin -1. Below it the target is -1, and counts only from above; so does one between -1 and 0.
  cases = [(0.5, -3, 1.5**2), (-2, -3, 0), (0.5, -0.5, 1), (-0.7, -0.5, 0), (-3, 2, 25), (3, 2, 1)]
  for student, teacher, expected in cases:
    rows = ofd.loss(np.full((1, 1, 1, 1), student), np.full((1, 1, 1, 1), teacher), np.array([-1.0]))
    np.testing.assert_allclose(rows, [expected])
  student, teacher = (np.array([case[i] for case in cases]).reshape(1, 3, 2, 1) for i in (0, 1))
  np.testing.assert_allclose(ofd.loss(student, teacher, np.array([-1.0])), [1.5**2 + 1 + 25 + 1])


@pytest.mark.parametrize("scale, bias", [(1.0, 0.0), (-0.5, 1.2), (2.0, -3.0), (0.1, -5.0)])
def test_margin_is_the_mean_of_the_negative_part(scale, bias):
  x = np.linspace(bias - 12 * abs(scale), min(bias + 12 * abs(scale), 0), 200_001)
  density = np.exp(-(((x - bias) / scale) ** 2) / 2)
  expected = (x * density).sum() / density.sum()
  np.testing.assert_allclose(ofd.margin(np.array([scale]), np.array([bias])), [expected], rtol=1e-3)


def test_margin_where_negative_responses_are_rare_or_the_scale_is_zero():
  scale, bias = np.array([2.0, -2.0, 0, 0, 0, 1e-6]), np.array([7.0, 7.0, 1, -1, 0, 1e4])
  np.testing.assert_allclose(ofd.margin(scale, bias), [-6, -6, 0, -1, 0, -3e-6])
  for dtype in (np.float32, np.float64):
    gradient = jax.jit(jax.grad(lambda s, b: ofd.margin(s, b).sum(), (0, 1)))(
      scale.astype(dtype), bias.astype(dtype)
    )
    assert all(np.isfinite(x).all() for x in gradient)


def connected(x, params, tap):
  """A 1x1 convolution and batch norm at its start, in NumPy."""
  x = np.asarray(x) @ np.asarray(params[f"tap{tap}"]["conv"]["kernel"])[0, 0]
  return (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)


def test_method_pairs_from_the_end_and_halves_the_weight_of_shallower_taps():
  method, aux = start()
  loss, state = run(method, aux)
  # The student's first stage, 4x4, meets the teacher's second, 2x2.
  small = np.asarray(STUDENT.features[1]).reshape(4, 2, 2, 2, 2, 3).mean((2, 4))
  first, last = connected(small, aux.params, 0), connected(STUDENT.features[2], aux.params, 1)
  expected = 0.5 * ofd.loss(first, TEACHER.features[2], ofd.margin(*NORMS[2]))
  expected += ofd.loss(last, TEACHER.features[3], ofd.margin(*NORMS[3]))
  np.testing.assert_allclose(loss, expected, rtol=1e-9)
  assert state.negatives == {}


def mean_of_negatives(*batches):
  x = np.concatenate([np.asarray(x).reshape(-1, x.shape[-1]) for x in batches])
  return np.where(x < 0, x, 0).sum(0) / np.maximum((x < 0).sum(0), 1)


def test_running_margin():
  def positive(x):
    return np.where(np.arange(6) == 0, 1.0, x)  # a channel that is never negative

  first, second = (positive(maps(seed, 4, 2, 2, 6)) for seed in (5, 6))
  method, aux = start(outputs(STEM, first), margin="running")
  _, state = run(method, aux, outputs(STEM, first))
  loss, state = run(method, aux._replace(state=state), outputs(STEM, second))
  margin = mean_of_negatives(first, second)
  assert margin[0] == 0
  expected = ofd.loss(connected(STUDENT.features[2], aux.params, 0), second, margin)
  np.testing.assert_allclose(loss, expected, rtol=1e-9)
  total, share = state.negatives["tap0"]
  np.testing.assert_allclose(total / np.maximum(share, 1e-9), margin)
  assert state.steps == 2


def test_taps_without_batch_norm_have_running_margins():
  def remembered(*norms):
    return list(jax.eval_shape(lambda: start(TEACHER._replace(norms=norms))[1].state.negatives))

  assert remembered(*NORMS[:2], None, NORMS[3]) == ["tap0"]
  assert remembered() == ["tap0", "tap1"]
  mixed = TEACHER._replace(norms=(*NORMS[:2], None, NORMS[3]))
  loss, _ = run(*start(mixed), mixed)
  by_norm, running = run(*start())[0], run(*start(margin="running"))[0]
  assert (loss != by_norm).all() and (loss != running).all()


def test_running_margins_are_those_of_the_global_batch():
  method, aux = start(margin="running")
  loss, state = run(method, aux)

  def split(x):
    return x.reshape(4, 1, *x.shape[1:])

  student_outputs, teacher = jax.tree.map(split, (STUDENT, TEACHER._replace(norms=())))

  def device_loss(s, t):
    return method.apply(*aux, s, (t,), Context(None, axis_name="batch"))

  on_each = jax.pmap(device_loss, axis_name="batch", devices=jax.devices()[:4])
  losses, states = on_each(student_outputs, teacher)
  np.testing.assert_allclose(losses[:, 0], loss, rtol=1e-10)

  def same(ours, theirs):
    return np.testing.assert_allclose(theirs, np.broadcast_to(ours, theirs.shape), rtol=1e-10)

  jax.tree.map(same, state.negatives, states.negatives)


def test_the_connectors_learn_and_start_as_the_authors_do():
  method, aux = start()
  gradient = jax.jit(jax.grad(lambda params: run(method, aux._replace(params=params))[0].mean()))(aux.params)
  assert all((x != 0).any() for x in jax.tree.leaves(gradient))
  wide = outputs(STEM, maps(0, 1, 1, 1, 64)), outputs(STEM, maps(1, 1, 1, 1, 128))
  kernel = ofd.method().init(jax.random.key(0), wide[0], wide[1:], None).params["tap0"]["conv"]["kernel"]
  np.testing.assert_allclose(kernel.std(), math.sqrt(2 / 128), rtol=0.05)
