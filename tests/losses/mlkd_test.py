"""Tests of losses/mlkd.py."""

import functools

import jax
import numpy as np
import pytest

from smskd_jax.losses import kd, mlkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Outputs

pytestmark = pytest.mark.usefixtures("float64")

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
loss = jax.jit(mlkd.loss, static_argnames=("temperatures", "public_code", "axis_name"))


def logits(seed, b=6, k=5):
  """Of the student and the teacher, on two views: [4, b, k]."""
  return np.random.default_rng(seed).normal(size=(4, b, k), scale=3.0)


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def numpy_loss(student, teacher, student_strong, teacher_strong, public_code):
  """The mean over the batch, written from the formulas in the module's docstring."""
  b, k = student.shape

  def kl(p, q, t):
    return t**2 * (p * np.log(p / q)).sum() / b

  example_fraction = class_fraction = 1.0
  if public_code:
    confidence, class_sums = softmax(teacher).max(1), softmax(teacher).sum(0)
    example_fraction = (confidence <= np.percentile(confidence, 50)).mean()
    class_fraction = (class_sums <= np.percentile(class_sums, 50)).mean()
  total = 0.0
  for t in TEMPERATURES:
    p, q, p_strong, q_strong = (softmax(x / t) for x in (teacher, student, teacher_strong, student_strong))
    total += example_fraction * (kl(p, q, t) + ((p @ p.T - q @ q.T) ** 2).sum() / b)
    total += class_fraction * ((p.T @ p - q.T @ q) ** 2).sum() / k
    total += kl(p, q, t) if public_code and t in (2.0, 6.0) else kl(p_strong, q_strong, t)
  return total


def test_relations_worked_by_hand():
  # Between examples: 10/16, 1/2, 1/2 against 1/2. Between classes: 13/16, 7/16, 7/16, 5/16 against 1/2.
  teacher, student = np.log([[3.0, 1.0], [1.0, 1.0]]), np.zeros((2, 2))
  np.testing.assert_allclose(mlkd.batch_loss(student, 2 * teacher, temperature=2.0), [0.125**2, 0.0])
  by_class = (0.3125**2 + 2 * 0.0625**2 + 0.1875**2) / 2
  np.testing.assert_allclose(mlkd.class_loss(student, 2 * teacher, temperature=2.0), [by_class, by_class])


@pytest.mark.parametrize("public_code", [False, True])
@pytest.mark.parametrize("seed, b, k", [(0, 6, 5), (1, 5, 6), (2, 1, 2)])
def test_equals_numpy(seed, b, k, public_code):
  rows = loss(*logits(seed, b, k), public_code=public_code)
  assert rows.shape == (b,)
  np.testing.assert_allclose(rows.mean(), numpy_loss(*logits(seed, b, k), public_code))


def test_with_one_view_the_public_code_halves_the_loss():
  # Of an even number of different confidences half are at most the median, of examples as of classes.
  student, teacher, *_ = logits(0, 6, 4)
  halved = loss(student, teacher, public_code=True)
  np.testing.assert_allclose(halved, 0.5 * loss(student, teacher))


def test_zero_where_the_logits_agree_up_to_constants():
  student, _, strong, _ = logits(0)
  np.testing.assert_allclose(loss(student, student + 3.0, strong, strong - 2.0), 0.0, atol=1e-12)


def test_both_views_teach():
  gradients = jax.jit(jax.grad(lambda s, t, *strong: mlkd.loss(s, t, *strong).mean(), argnums=(0, 2)))
  assert all((np.abs(g).max(axis=1) > 0).all() for g in gradients(*logits(0)))


def test_relations_span_devices():
  weak_and_strong = logits(0, 8)
  run = functools.partial(loss, temperatures=(2.0, 4.0), public_code=True)
  shares = weak_and_strong.reshape(4, 4, 2, 5)
  on_four = jax.pmap(functools.partial(run, axis_name="batch"), "batch", in_axes=0, devices=jax.devices()[:4])
  rows = on_four(*shares)
  np.testing.assert_allclose(rows.reshape(8), run(*weak_and_strong), rtol=1e-10)


def outputs(first, *others):
  return Outputs(first, None, (), (), view_outputs=tuple(Outputs(other, None, (), ()) for other in others))


def run(student_outputs, teacher, **options):
  method = mlkd.method(**options)
  assert method.multi_view
  aux = method.init(jax.random.key(0), student_outputs, (teacher,), None)
  return jax.jit(method.apply)(*aux, student_outputs, (teacher,), Context(None))[0]


def test_the_method_on_two_views_worked_by_hand():
  # As above with T = 2; the networks agree on the first view, and on the second (3/4, 1/4) teaches (1/2, 1/2).
  first, strong = np.array([[1.0, 2.0]]), np.zeros((1, 2))
  teacher_strong = 2 * np.log([[3.0, 1.0]])
  expected = 2**2 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
  options = {"temperatures": (2.0,)}
  np.testing.assert_allclose(
    run(outputs(first, strong), outputs(first, teacher_strong), **options), [expected]
  )
  np.testing.assert_allclose(run(outputs(first), outputs(first), **options), [0.0], atol=1e-12)
  # The authors' code takes the first view at T = 2 again, where they agree.
  same = run(outputs(first, strong), outputs(first, teacher_strong), public_code=True, **options)
  np.testing.assert_allclose(same, [0.0], atol=1e-12)


@pytest.mark.parametrize("public_code", [False, True])
def test_the_method_gives_the_loss_its_views(public_code):
  student, teacher, student_strong, teacher_strong = logits(0)
  two = run(outputs(student, student_strong), outputs(teacher, teacher_strong), public_code=public_code)
  np.testing.assert_allclose(two.mean(), numpy_loss(*logits(0), public_code))
  one = run(outputs(student), outputs(teacher), public_code=public_code)
  np.testing.assert_allclose(one, loss(student, teacher, public_code=public_code))


def test_several_strong_views_are_averaged():
  (student, teacher, *first), (*_, second_student, second_teacher) = logits(0), logits(1)
  three = run(outputs(student, first[0], second_student), outputs(teacher, first[1], second_teacher))
  strong = (
    sum(kd.loss(s, t, temperature=x) for x in TEMPERATURES)
    for s, t in (first, (second_student, second_teacher))
  )
  np.testing.assert_allclose(three, loss(student, teacher) + sum(strong) / 2)


def test_refuses_a_second_view_of_one_network():
  student, teacher, strong, _ = logits(0)
  with pytest.raises(ValueError, match="mlkd: the strongly augmented view needs the logits of both networks"):
    mlkd.loss(student, teacher, strong)
