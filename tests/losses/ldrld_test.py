"""Tests of losses/ldrld.py."""

import itertools

import jax
import numpy as np
import pytest

from smskd_jax.losses import kd, ldrld

pytestmark = pytest.mark.usefixtures("float64")
loss = jax.jit(ldrld.loss, static_argnames="k")


def networks(seed=0, b=4, k=9):
  return np.random.default_rng(seed).normal(size=(2, b, k))


def kl(z_t, z_s):
  p, q = (np.exp(z) / np.exp(z).sum() for z in (z_t, z_s))
  return np.sum(p * np.log(p / q))


def test_worked_by_hand():
  # The student's two largest logits are equal and those of classes 0 and 2, which the teacher has as 3 to 1; the others
  # as 2 to 1. Ranks 1 and 2 have the weight 2 exp(-0.15) / 2.5.
  top = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
  rest = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  student, teacher = np.array([[5.0, 0.0, 5.0, 0.0]]), np.log([[3.0, 2.0, 1.0, 1.0]])
  local = (top + 0.8 * np.exp(-0.15) * top) / 2
  rows = loss(student, teacher, alpha=3.0, beta=5.0, k=2, temperature=1.0)
  np.testing.assert_allclose(rows, [3 * local + 5 * rest])
  rows = loss(2 * student, 2 * teacher, alpha=3.0, beta=5.0, k=2, temperature=2.0)
  np.testing.assert_allclose(rows, [4 * (3 * local + 5 * rest)])


@pytest.mark.parametrize("seed, k, top, temperature", [(0, 9, 7, 4.0), (1, 6, 3, 1.0), (2, 5, 4, 2.0)])
def test_equals_the_formula(seed, k, top, temperature):
  student, teacher = networks(seed, 4, k)
  expected = []
  for z_s, z_t in zip(student / temperature, teacher / temperature, strict=True):
    first, rest = np.split(np.argsort(-z_s), [top])
    terms = [kl(z_t[first], z_s[first])]
    for m, n in itertools.combinations(range(1, top + 1), 2):
      pair = first[[m - 1, n - 1]]
      terms.append(2 * np.exp(-0.05 * (m + n)) / (1.5 + n - m) * kl(z_t[pair], z_s[pair]))
    expected.append(temperature**2 * (4 * np.mean(terms) + 3 * kl(z_t[rest], z_s[rest])))
  rows = loss(student, teacher, alpha=4.0, beta=3.0, k=top, temperature=temperature)
  np.testing.assert_allclose(rows, expected, rtol=1e-10)


def test_ranks_by_the_student():
  # Only the gradient of the rest reaches the student's smallest logits, whatever the teacher's order.
  student, teacher = np.array([[3.0, 2.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 2.0, 5.0]])
  gradient = jax.grad(lambda s: loss(s, teacher, beta=0.0, k=2).sum())(student)
  np.testing.assert_array_equal(gradient != 0, [[True, True, False, False]])


def test_with_a_single_top_class_only_the_others_count():
  student, teacher = networks()
  np.testing.assert_array_equal(loss(student, teacher, k=1), loss(student, teacher, alpha=0.0, k=1))


@pytest.mark.parametrize("k", [9, 12])
def test_without_other_classes_there_are_pairs_and_all_of_them(k):
  student, teacher = networks()
  rows = loss(student, teacher, k=k)
  np.testing.assert_array_equal(rows, loss(student, teacher, beta=0.0, k=k))
  pairs = ldrld.pair_loss(*(np.take_along_axis(z, np.argsort(-student), 1) / 4 for z in (student, teacher)))
  np.testing.assert_allclose(rows, 10.5 * (kd.loss(student, teacher) + 16 * pairs) / 37, rtol=1e-10)


def test_zero_where_logits_agree_up_to_a_constant():
  student, _ = networks()
  np.testing.assert_allclose(loss(student + 3.0, student), 0, atol=1e-12)


def test_right_at_extreme_logits():
  # A pair and the group of two: student and teacher are certain of different classes, at a distance of 2e4 / T.
  student, teacher = np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]])
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, alpha=2.0, k=2).sum())(student)
  factor = 1 + 0.8 * np.exp(-0.15)
  np.testing.assert_allclose(value, 16 * 5000 * factor)
  np.testing.assert_allclose(gradient, factor * np.array([[4.0, -4.0]]), rtol=1e-10)
