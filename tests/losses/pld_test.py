"""Tests of losses/pld.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import pld

loss = jax.jit(pld.loss)


def networks(seed=0, b=5, k=6):
  rng = np.random.default_rng(seed)
  return (*rng.normal(size=(2, b, k)), rng.integers(0, k, b))


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


@pytest.mark.usefixtures("float64")
def test_worked_by_hand():
  # Teacher (1/2, 1/3, 1/6) and label 1: the ranking 1, 0, 2. Student (1/6, 1/2, 1/3): 1/2 of all, then 1/3 of 2/3.
  student, teacher = np.log([[1.0, 3.0, 2.0]]), np.log([[3.0, 2.0, 1.0]])
  expected = 1 / 3 * np.log(2) + 1 / 2 * np.log(3)
  np.testing.assert_allclose(loss(student, teacher, np.array([1]), temperature=1.0), [expected])
  np.testing.assert_allclose(
    loss(student, 4 * teacher, np.array([1])), [expected]
  )  # T softens the teacher alone


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed, b, k, temperature", [(0, 5, 6, 4.0), (1, 3, 9, 1.0), (2, 4, 2, 2.0)])
def test_equals_the_formula(seed, b, k, temperature):
  student, teacher, labels = networks(seed, b, k)
  expected = []
  for z_s, z_t, y in zip(student, teacher, labels, strict=True):
    q, total = softmax(z_t / temperature), 0.0
    left = [y, *(c for c in np.argsort(-z_t) if c != y)]
    while left:
      total -= q[left[0]] * np.log(softmax(z_s[left])[0])
      left = left[1:]
    expected.append(total)
  np.testing.assert_allclose(loss(student, teacher, labels, temperature=temperature), expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_of_a_certain_teacher_it_is_the_cross_entropy():
  student, _, labels = networks()
  teacher = 1e4 * np.eye(6)[labels]
  expected = [-np.log(softmax(z)[y]) for z, y in zip(student, labels, strict=True)]
  np.testing.assert_allclose(loss(student, teacher, labels), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_ranks_the_label_first_and_equal_classes_by_number(dtype):
  teacher = np.array([[0.0, 2.0, 1.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype)
  np.testing.assert_array_equal(pld.ranking(teacher, np.array([4, 2])), [[4, 1, 3, 2, 0], [2, 0, 1, 3, 4]])


@pytest.mark.usefixtures("float64")
def test_ignores_a_constant_of_the_student():
  student, teacher, labels = networks()
  np.testing.assert_allclose(loss(student + 7.0, teacher, labels), loss(student, teacher, labels), rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_gradient_compares_each_choice_with_the_classes_that_are_left():
  # A uniform teacher of three classes, label 0, then 1 and 2: (softmax of all - e_0 + softmax of 1 and 2 - e_1) / 3.
  student = np.log([[1.0, 1.0, 2.0]])
  gradient = jax.grad(lambda s: loss(s, np.zeros((1, 3)), np.array([0])).sum())(student)
  np.testing.assert_allclose(gradient, [[-3 / 4 / 3, (1 / 4 + 1 / 3 - 1) / 3, (1 / 2 + 2 / 3) / 3]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_right_at_extreme_logits(dtype):
  with jax.enable_x64(dtype == np.float64):
    student, teacher = np.array([[1e4, -1e4, 0.0]], dtype), np.zeros((1, 3), dtype)
    value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, np.array([1])).sum())(student)
  # Choosing class 1 costs 2e4; then class 0 is certain to be chosen before class 2.
  np.testing.assert_allclose(value, 2e4 / 3, rtol=1e-6)
  np.testing.assert_allclose(gradient, [[1 / 3, -1 / 3, 0]], atol=1e-6)
