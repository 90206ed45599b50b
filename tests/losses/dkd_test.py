"""Tests of losses/dkd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import dkd, kd

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(dkd.loss)


def networks(seed=0, b=4, k=5):
  rng = np.random.default_rng(seed)
  return (*rng.normal(size=(2, b, k)), rng.integers(0, k, b))


def test_worked_by_hand():
  # Teacher (1/2, 1/3, 1/6), student uniform, label 0: (1/2, 1/2) against (1/3, 2/3), (2/3, 1/3) against (1/2, 1/2).
  on_label = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
  among_others = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  teacher = np.log([[3.0, 2.0, 1.0]])
  args = np.zeros((1, 3)), teacher, np.array([0])
  np.testing.assert_allclose(loss(*args, beta=0.0, temperature=1.0), [on_label])
  np.testing.assert_allclose(loss(*args, alpha=0.0, beta=1.0, temperature=1.0), [among_others])
  # At T = 2 twice the logits give the same probabilities, and four times the loss.
  doubled = loss(np.zeros((1, 3)), 2 * teacher, np.array([0]), alpha=3.0, beta=2.0, temperature=2.0)
  np.testing.assert_allclose(doubled, [4 * (3 * on_label + 2 * among_others)])


def test_coupled_it_is_kd():
  student, teacher, labels = networks()
  on_label = loss(student, teacher, labels, alpha=1.0, beta=0.0)
  among_others = loss(student, teacher, labels, alpha=0.0, beta=1.0)
  p_others = 1 - np.asarray(jax.nn.softmax(teacher / 4))[np.arange(4), labels]
  np.testing.assert_allclose(on_label + p_others * among_others, kd.loss(student, teacher), rtol=1e-10)


def test_zero_where_logits_agree_up_to_a_constant():
  student, _, labels = networks()
  np.testing.assert_allclose(loss(student + 3.0, student, labels), 0, atol=1e-12)


def test_of_two_classes_the_others_are_a_single_one():
  student, teacher, labels = networks(k=2)
  assert (loss(student, teacher, labels, alpha=0.0) == 0).all()
  gradient = jax.grad(lambda s: loss(s, teacher, labels, alpha=0.0).sum())(student)
  assert (gradient == 0).all()
  np.testing.assert_allclose(loss(student, teacher, labels), kd.loss(student, teacher), rtol=1e-10)


def test_leaves_out_the_label_however_large_its_logit():
  # A shift of the label's logit by -1000 would leave it the largest of its row here.
  student, teacher, labels = networks()
  is_label = np.eye(5, dtype=bool)[labels]
  expected = loss(student, teacher, labels, alpha=0.0)

  def huge(z):
    return np.where(is_label, 1e5, z)

  value, gradient = jax.value_and_grad(lambda s: loss(s, huge(teacher), labels, alpha=0.0).sum())(
    huge(student)
  )
  np.testing.assert_allclose(value, expected.sum())
  assert (gradient[is_label] == 0).all() and (gradient[~is_label] != 0).all()


def test_finite_and_right_at_extreme_logits():
  # Teacher certain of class 0, student of class 1: b is (1, 0) against (0, 1) at a distance of 2e4 / T.
  student, teacher = np.array([[-1e4, 1e4, 0.0]]), np.array([[1e4, -1e4, 0.0]])
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, np.array([0]), beta=0.0).sum())(student)
  np.testing.assert_allclose(value, 16 * 5000.0)
  np.testing.assert_allclose(gradient, [[-4.0, 4.0, 0.0]], atol=1e-12)
