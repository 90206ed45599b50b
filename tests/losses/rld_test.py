"""Tests of losses/rld.py."""

import jax
import numpy as np
import pytest

from smskd_jax.losses import dkd, logit_standardization, rld

loss = jax.jit(rld.loss)


def networks(seed=0, b=5, k=6):
  rng = np.random.default_rng(seed)
  return (*2 * rng.normal(size=(2, b, k)), rng.integers(0, k, b))


def softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


@pytest.mark.usefixtures("float64")
def test_worked_by_hand():
  # Teacher (4, 3, 2, 1) / 10, label 1, a uniform student: (0.4, 0.6) against (1/4, 3/4); below the label (2/3, 1/3)
  # against (1/2, 1/2).
  confidence = 0.4 * np.log(0.4 / 0.25) + 0.6 * np.log(0.6 / 0.75)
  masked = 2 / 3 * np.log(4 / 3) + 1 / 3 * np.log(2 / 3)
  student, teacher, label = np.zeros((1, 4)), np.log([[4.0, 3.0, 2.0, 1.0]]), np.array([1])
  np.testing.assert_allclose(rld.confidence_loss(student, teacher, label, temperature=1.0), [confidence])
  np.testing.assert_allclose(rld.masked_loss(student, teacher, label, temperature=1.0), [masked])
  # At T twice the logits give the same probabilities; each temperature's square multiplies its term.
  rows = loss(student, 2 * teacher, label, alpha=3.0, beta=5.0, temperature=2.0, alpha_temperature=2.0)
  np.testing.assert_allclose(rows, [4 * (3 * confidence + 5 * masked)])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
  "seed, b, k, temperature, alpha_temperature", [(0, 5, 6, 4.0, 1.0), (1, 9, 4, 1.0, 2.0)]
)
def test_equals_the_formula(seed, b, k, temperature, alpha_temperature):
  student, teacher, labels = networks(seed, b, k)
  expected = []
  for z_s, z_t, y in zip(student, teacher, labels, strict=True):
    m, p = softmax(z_t / alpha_temperature).max(), softmax(z_s / alpha_temperature)[y]
    confidence = m * np.log(m / p) + (1 - m) * np.log((1 - m) / (1 - p))
    below = z_t < z_t[y]
    masked = 0.0
    if below.any():
      q_t, q_s = softmax(z_t[below] / temperature), softmax(z_s[below] / temperature)
      masked = np.sum(q_t * np.log(q_t / q_s))
    expected.append(1.5 * alpha_temperature**2 * confidence + 4 * temperature**2 * masked)
  rows = loss(
    student,
    teacher,
    labels,
    alpha=1.5,
    beta=4.0,
    temperature=temperature,
    alpha_temperature=alpha_temperature,
  )
  np.testing.assert_allclose(rows, expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_of_a_teacher_that_is_right_it_is_dkd():
  student, teacher, _ = networks()
  labels = teacher.argmax(axis=1)
  np.testing.assert_allclose(loss(student, teacher, labels), dkd.loss(student, teacher, labels), rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_classes_that_tie_with_the_label_are_left_out():
  teacher, labels = np.array([[3.0, 1.0, 1.0, 0.0, -1.0]]), np.array([1])
  student = np.random.default_rng(0).normal(size=(1, 5))
  gradient = jax.grad(lambda s: rld.masked_loss(s, teacher, labels).sum())(student)
  assert (gradient[0, :3] == 0).all() and (gradient[0, 3:] != 0).all()


@pytest.mark.parametrize("label", [2, 3], ids=["one class is left", "none is left"])
@pytest.mark.parametrize("student", [[0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 5.0]])
def test_without_two_classes_below_the_label_the_masked_term_is_zero(label, student):
  teacher = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
  value, gradient = jax.value_and_grad(lambda s: rld.masked_loss(s, teacher, np.array([label])).sum())(
    np.array([student], np.float32)
  )
  assert value == 0 and (gradient == 0).all()


def test_rounding_does_not_put_the_label_or_its_equals_below_the_label():
  """The compiled z-scores of one logit may differ from use to use."""

  @jax.jit
  def masked_gradient(student, teacher, labels):
    def total(s):
      return rld.masked_loss(s, logit_standardization.standardize(teacher), labels).sum()

    return jax.grad(total)(student)

  rows = np.arange(6)
  for seed in range(50):
    student, teacher, labels = networks(seed, 6, 17)
    equal = (labels + 1) % 17
    teacher[rows, equal] = teacher[rows, labels]
    gradient = masked_gradient(student.astype(np.float32), teacher.astype(np.float32), labels)
    assert (gradient[rows, labels] == 0).all() and (gradient[rows, equal] == 0).all()


@pytest.mark.usefixtures("float64")
def test_right_at_extreme_logits():
  # Teacher certain of class 0, label 1: the student's probability of the label is to be 1, and it is exp(-2e4 / T).
  student, teacher = np.array([[1e4, -1e4, 0.0]]), np.array([[1e4, 0.0, -1e4]])
  value, gradient = jax.value_and_grad(lambda s: loss(s, teacher, np.array([1]), beta=0.0).sum())(student)
  np.testing.assert_allclose(value, 16 * 5000.0)
  np.testing.assert_allclose(gradient, [[4.0, -4.0, 0.0]], atol=1e-12)
