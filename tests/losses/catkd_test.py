"""Tests of losses/catkd.py."""

import jax
from jax.test_util import check_grads
import numpy as np
import pytest

from smskd_jax.losses import catkd
from smskd_jax.losses.contract import Context
from smskd_jax.types import Head, Outputs

pytestmark = pytest.mark.usefixtures("float64")


def maps(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def outputs(final_map, head):
  return Outputs(final_map.mean((1, 2)) @ head.kernel + head.bias[None], None, (), (), final_map, head)


def head(seed, d, k=5):
  return Head(maps(seed, d, k), maps(seed + 1, k))


def begin(method, student_outputs, teacher):
  """The MethodVariables of a pair, from shapes."""
  return method.init(jax.random.key(0), *jax.eval_shape(lambda: (student_outputs, (teacher,))), None)


def test_worked_by_hand():
  student, teacher = np.array([[[[1.0], [3.0]]]]), np.array([[[[0.0], [4.0]]]])
  # Of 1 x 2 positions each is repeated to make 2 x 2; their mean is the same in both.
  np.testing.assert_allclose(catkd.loss(student, teacher, size=2), [1])
  np.testing.assert_allclose(catkd.loss(student, teacher, size=1), [0])
  # (1, 3, 1, 3) / sqrt(20) against (0, 1, 0, 1) / sqrt(2): their inner product is 6 / sqrt(40).
  expected = (2 - 2 * 6 / np.sqrt(40)) / 4
  np.testing.assert_allclose(catkd.loss(student, teacher, size=2, normalize=True), [expected])


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_formula_in_numpy(seed, normalize):
  student, teacher = maps(seed, 4, 6, 4, 3), maps(seed + 3, 4, 2, 2, 3)
  pooled = student.reshape(4, 2, 3, 2, 2, 3).mean((2, 4))
  if normalize:
    pooled, normalized_teacher = (
      x / np.sqrt(np.square(x).sum((1, 2), keepdims=True)) for x in (pooled, teacher)
    )
  else:
    normalized_teacher = teacher
  expected = np.square(pooled - normalized_teacher).mean((1, 2, 3))
  np.testing.assert_allclose(catkd.loss(student, teacher, size=2, normalize=normalize), expected)


def test_the_mean_of_the_activation_maps_are_the_logits():
  classifier, final_map = head(0, 6), maps(2, 4, 3, 2, 6)
  found = catkd.class_activation_maps(final_map, classifier)
  assert found.shape == (4, 3, 2, 5)
  np.testing.assert_allclose(found.mean((1, 2)), outputs(final_map, classifier).logits)
  np.testing.assert_allclose(found[1, 2, 0], final_map[1, 2, 0] @ classifier.kernel + classifier.bias)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("normalize", [False, True])
def test_method_is_the_loss_of_the_activation_maps_of_any_size(size, normalize):
  student_outputs, teacher = (
    outputs(maps(0, 4, 4, 3, 6), head(2, 6)),
    outputs(maps(1, 4, 2, 5, 7), head(4, 7)),
  )
  cams = [catkd.class_activation_maps(x.final_map, x.head) for x in (student_outputs, teacher)]
  method = catkd.method(size=size, normalize=normalize)
  aux = begin(method, student_outputs, teacher)
  rows, _ = method.apply(*aux, student_outputs, (teacher,), Context(None))
  np.testing.assert_allclose(rows, catkd.loss(*cams, size=size, normalize=normalize), rtol=1e-9)


def test_of_one_position_it_compares_the_logits():
  student_outputs, teacher = (
    outputs(maps(0, 4, 4, 4, 6), head(2, 6)),
    outputs(maps(1, 4, 2, 2, 7), head(4, 7)),
  )
  rows, _ = catkd.method(size=1).apply((), (), student_outputs, (teacher,), Context(None))
  np.testing.assert_allclose(rows, np.square(student_outputs.logits - teacher.logits).mean(1))


def test_normalised_maps_have_no_scale():
  student, teacher = maps(0, 4, 4, 4, 3), maps(1, 4, 4, 4, 3)
  rows = catkd.loss(student, teacher, normalize=True)
  scale = np.array([1e-6, 1.0, 1e6])
  np.testing.assert_allclose(catkd.loss(student * scale, 3 * teacher, normalize=True), rows, rtol=1e-9)
  np.testing.assert_allclose(catkd.loss(2 * student, student, normalize=True), 0, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient(normalize):
  student, teacher = maps(0, 2, 4, 4, 3), maps(1, 2, 2, 2, 3)
  check_grads(lambda s: catkd.loss(s, teacher, normalize=normalize), (student,), order=1, modes=["rev"])


def test_maps_of_zeros_have_finite_gradients():
  gradient = jax.grad(lambda s: catkd.loss(s, maps(1, 2, 2, 2, 3), normalize=True).sum())
  assert np.isfinite(gradient(np.zeros((2, 4, 4, 3)))).all()


def test_the_students_classifier_learns():
  student_outputs, teacher = (
    outputs(maps(0, 4, 4, 4, 6), head(2, 6)),
    outputs(maps(1, 4, 2, 2, 7), head(4, 7)),
  )

  def loss(own):
    return (
      catkd.method().apply((), (), student_outputs._replace(head=own), (teacher,), Context(None))[0].mean()
    )

  before, gradient = jax.value_and_grad(loss)(student_outputs.head)
  assert all(x.any() for x in gradient)
  assert loss(jax.tree.map(lambda p, g: p - 0.1 * g, student_outputs.head, gradient)) < before


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("field", ["final_map", "head"])
def test_refuses_networks_without_a_linear_classifier(field, who):
  whole = outputs(maps(0, 4, 4, 4, 6), head(2, 6))
  student_outputs, teacher = (
    whole._replace(**{field: None}) if who == name else whole for name in ("student", "teacher")
  )
  with pytest.raises(ValueError, match=f"catkd: the {who} does not give Outputs.{field}"):
    begin(catkd.method(), student_outputs, teacher)


def test_refuses_networks_of_different_tasks():
  student_outputs, teacher = (outputs(maps(0, 4, 4, 4, 6), head(2, 6, k)) for k in (5, 4))
  with pytest.raises(ValueError, match="catkd: the student has 5 classes, the teacher 4"):
    begin(catkd.method(), student_outputs, teacher)
