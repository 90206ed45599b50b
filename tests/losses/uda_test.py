"""Tests of losses/uda.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import logit_standardization, uda
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")


def views(seed, b=6, k=5, count=2):
  """Logits of views, [count, b, k], of which the first is sure of some examples and unsure of others."""
  return np.random.default_rng(seed).normal(size=(count, b, k), scale=3.0)


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def outputs(first, *others):
  return Outputs(first, None, (), (), view_outputs=tuple(Outputs(other, None, (), ()) for other in others))


def run(student, teachers=(), **options):
  method = uda.method(**options)
  aux = method.init(jax.random.key(0), student, teachers, None)
  return method.apply(*aux, student, teachers, Context(None))[0]


def test_worked_by_hand():
  # p is (3/4, 1/4), sharpened to (9/10, 1/10); q is (1/2, 1/2).
  plain, augmented = np.log([[3.0, 1.0]]), np.zeros((1, 2))
  expected = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
  options = {"temperature": 0.5, "threshold": 0.7}
  np.testing.assert_allclose(uda.loss(plain, augmented, **options), [expected])
  np.testing.assert_array_equal(uda.loss(augmented, plain, **options), [0.0])
  assert uda.loss(augmented, plain, temperature=0.5, threshold=0.5) > 0  # the threshold itself is enough


@pytest.mark.parametrize("temperature, threshold", [(0.4, 0.8), (1.0, 0.0), (2.0, 0.6), (0.4, 1.0)])
def test_in_numpy(temperature, threshold):
  plain, augmented = views(0)
  p, q = softmax(plain / temperature), softmax(augmented)
  sure = softmax(plain).max(1) >= threshold
  expected = np.where(sure, (p * np.log(p / q)).sum(1), 0)
  rows = uda.loss(plain, augmented, temperature=temperature, threshold=threshold)
  np.testing.assert_allclose(rows, expected, rtol=1e-12)


def test_the_default_learns_where_the_plain_view_is_sure():
  plain, augmented = views(0)
  sure = softmax(plain).max(1) >= 0.8
  assert sure.any() and not sure.all()
  gradient = jax.grad(lambda x: uda.loss(plain, x).sum())(augmented)
  np.testing.assert_array_equal(np.abs(gradient).max(1) > 0, sure)
  expected = np.where(sure[:, None], softmax(augmented) - softmax(plain / 0.4), 0)
  np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_no_gradient_flows_through_the_plain_view():
  plain, augmented = views(0)
  by_plain, by_augmented = jax.grad(lambda *x: run(outputs(*x), threshold=0.0).sum(), argnums=(0, 1))(
    plain, augmented
  )
  assert not np.any(by_plain) and np.all(by_augmented)


def test_several_other_views_are_averaged():
  plain, *others = views(1, count=4)
  expected = np.mean([uda.loss(plain, other) for other in others], axis=0)
  np.testing.assert_allclose(run(outputs(plain, *others)), expected)


def test_needs_no_teacher_and_reads_none():
  student, teachers = outputs(*views(0)), (outputs(*views(1)), outputs(*views(2)))
  assert uda.method().multi_view
  np.testing.assert_array_equal(run(student, teachers), run(student))


def test_a_plug_in_reaches_all_views():
  plain, augmented = views(0)
  standardized = [logit_standardization.standardize(x) for x in (plain, augmented)]
  method = logit_standardization.method(uda.method(threshold=0.0))
  assert method.multi_view
  student = outputs(plain, augmented)
  aux = method.init(jax.random.key(0), student, (), None)
  rows, _ = method.apply(*aux, student, (), Context(None))
  np.testing.assert_allclose(rows, uda.loss(*standardized, threshold=0.0))
