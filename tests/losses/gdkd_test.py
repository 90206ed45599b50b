"""Tests of losses/gdkd.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import dkd, gdkd, kd

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(gdkd.loss, static_argnames="k")


def networks(seed=0, b=4, k=7):
  return np.random.default_rng(seed).normal(size=(2, b, k))


def kl(z_t, z_s):
  p, q = (np.exp(z) / np.exp(z).sum() for z in (z_t, z_s))
  return np.sum(p * np.log(p / q))


def test_worked_by_hand():
  # Teacher (6, 3, 2, 1) / 12 and a uniform student, two classes on top: (3/4, 1/4) against (1/2, 1/2), and (2/3, 1/3)
  # against (1/2, 1/2) among the top and among the others alike.
  between = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  within = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  student, teacher = np.zeros((1, 4)), np.log([[1.0, 6.0, 2.0, 3.0]])
  rows = loss(student, teacher, k=2, w0=3.0, w1=5.0, w2=7.0, temperature=1.0)
  np.testing.assert_allclose(rows, [3 * between + 12 * within])
  rows = loss(student, 2 * teacher, k=2, w0=3.0, w1=5.0, w2=7.0, temperature=2.0)
  np.testing.assert_allclose(rows, [4 * (3 * between + 12 * within)])


@pytest.mark.parametrize("seed, k, top, temperature", [(0, 7, 3, 4.0), (1, 9, 5, 1.0), (2, 4, 1, 2.0)])
def test_equals_the_formula(seed, k, top, temperature):
  student, teacher = networks(seed, 4, k)
  expected = []
  for z_s, z_t in zip(student / temperature, teacher / temperature, strict=True):
    first, rest = np.split(np.argsort(-z_t), [top])
    log_masses = [np.log([np.exp(z[first]).sum(), np.exp(z[rest]).sum()]) for z in (z_t, z_s)]
    terms = kl(*log_masses), kl(z_t[first], z_s[first]), kl(z_t[rest], z_s[rest])
    expected.append(temperature**2 * np.dot((0.5, 2, 6), terms))
  rows = loss(student, teacher, k=top, w0=0.5, w1=2.0, w2=6.0, temperature=temperature)
  np.testing.assert_allclose(rows, expected, rtol=1e-10)


def test_with_a_single_top_class_it_is_dkd_with_the_teacher_s_prediction():
  student, teacher = networks()
  rows = dkd.loss(student, teacher, teacher.argmax(axis=1), alpha=1.0, beta=8.0)
  np.testing.assert_allclose(loss(student, teacher, k=1), rows, rtol=1e-10)


@pytest.mark.parametrize("k", [7, 8])
def test_without_other_classes_it_is_kd(k):
  student, teacher = networks()
  np.testing.assert_allclose(loss(student, teacher, k=k), 2 * kd.loss(student, teacher), rtol=1e-10)


def test_top_are_the_teacher_s_classes_and_of_equal_logits_the_first():
  student, teacher = np.zeros((1, 5)), np.array([[1.0, 0.0, 1.0, 1.0, 2.0]])
  gradient = jax.grad(lambda s: loss(s, teacher, k=3, w0=0.0, w2=0.0).sum())(student)
  np.testing.assert_array_equal(gradient != 0, [[True, False, True, False, True]])


def test_zero_where_logits_agree_up_to_a_constant():
  student, _ = networks()
  np.testing.assert_allclose(loss(student + 3.0, student), 0, atol=1e-12)


def test_right_at_extreme_logits():
  # Teacher certain of its top class, student of another: (1, 0) against (0, 1) at a distance of 2e4 / T.
  student, teacher = np.array([[-1e4, 1e4, 0.0]]), np.array([[1e4, -1e4, 0.0]])
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, k=1, w1=0.0, w2=0.0).sum())(student)
  np.testing.assert_allclose(value, 16 * 5000.0)
  np.testing.assert_allclose(gradient, [[-4.0, 4.0, 0.0]], atol=1e-12)
