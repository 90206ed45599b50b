"""Tests of losses/tfkd.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smskd_jax.losses import tfkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Batch, MethodVariables, Outputs

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(tfkd.loss)


def example(seed, b=4, k=5):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(b, k)), rng.integers(0, k, b)


def softmax(z):
  e = np.exp(z - z.max(axis=1, keepdims=True))
  return e / e.sum(axis=1, keepdims=True)


def targets(labels, k, correct, temperature):
  p = np.full((len(labels), k), (1 - correct) / (k - 1))
  p[np.arange(len(labels)), labels] = correct
  return softmax(p / temperature)


def test_worked_by_hand():
  # (3/4, 1/4) at T = 1 / (2 log 3) is 3^(3/2) to 3^(1/2), or 3 to 1; the student is uniform.
  rows = loss(np.zeros((1, 2)), np.array([0]), correct=0.75, temperature=0.5 / np.log(3))
  np.testing.assert_allclose(rows, [0.75 * np.log(1.5) + 0.25 * np.log(0.5)])


@pytest.mark.parametrize(
  "seed, b, k, correct, temperature", [(0, 4, 5, 0.99, 20.0), (1, 3, 100, 0.9, 1.0), (2, 2, 2, 1.0, 0.5)]
)
def test_equals_the_formula(seed, b, k, correct, temperature):
  student, labels = example(seed, b, k)
  u = targets(labels, k, correct, temperature)
  expected = np.sum(u * np.log(u / softmax(student)), axis=1)
  np.testing.assert_allclose(
    loss(student, labels, correct=correct, temperature=temperature), expected, rtol=1e-8
  )


def test_the_made_up_teacher_is_right_and_nearly_uniform():
  target = np.exp(tfkd.log_target(np.array([3, 7]), 100, correct=0.99, temperature=20.0))
  np.testing.assert_allclose(target.sum(axis=1), 1)
  assert (target.argmax(axis=1) == [3, 7]).all()
  np.testing.assert_allclose(target.max(axis=1), 0.0105, atol=1e-4)


def test_gradient_is_the_difference_of_probabilities():
  student, labels = example(3)
  gradient = jax.grad(lambda s: loss(s, labels).sum())(student)
  np.testing.assert_allclose(gradient, softmax(student) - targets(labels, 5, 0.99, 20.0), atol=1e-12)


@pytest.mark.parametrize("num_teachers", [0, 1, 2])
def test_reads_no_teacher(num_teachers):
  student, labels = example(4)
  student_outputs = Outputs(jnp.asarray(student), None, (), ())
  teachers = num_teachers * (Outputs(jnp.ones((4, 17)), None, (), ()),)
  method = tfkd.method()
  assert method.init(jax.random.key(0), student_outputs, teachers, labels) == MethodVariables()
  batch = Batch(None, jnp.asarray(labels), None)
  rows, _ = method.apply((), (), student_outputs, teachers, Context(batch, jax.random.key(1)))
  np.testing.assert_allclose(rows, loss(student, labels), rtol=1e-12)
